"""Make batches of token ids from talks; the batches have only a few shapes."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from talks import Talk, draw_talk
from tokenizers import Tokenizer

IGNORED = -100
_LENGTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768)

Example = tuple[list[int], list[int], list[int]]


class Encoder:
    """Converts talks to token ids, targets and positions; remembers the ids of frequent texts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._seen: dict[str, list[int]] = {}

    def __call__(self, talk: Talk) -> Example:
        """Return ids, the id that should follow each (or -100), and positions, all of one length."""
        ids: list[int] = []
        trained: list[bool] = []
        positions: list[int] = []
        position = 0
        for piece in talk.pieces:
            position += piece.skipped + (len(self._ids(piece.skipped_text)) if piece.skipped_text else 0)
            added = self._ids(piece.text)
            ids += added
            trained += [piece.trained] * len(added)
            positions += range(position, position + len(added))
            position += len(added)
        targets = [token if learn else IGNORED for token, learn in zip(ids[1:], trained[1:], strict=True)]
        return ids[:-1], targets, positions[:-1]

    def _ids(self, text: str) -> list[int]:
        if text not in self._seen:
            if len(self._seen) > 100_000:
                self._seen.clear()
            self._seen[text] = self._tokenizer.encode(text).ids
        return self._seen[text]


def batches(rng: random.Random, encode: Encoder, size: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield batches of about `size` tokens for ever: ids, targets and positions, each [rows, length].

    There are few shapes, each always full, because PyTorch prepares its products anew for every shape.
    """
    waiting: dict[int, list[Example]] = {length: [] for length in _LENGTHS}
    while True:
        example = encode(draw_talk(rng))
        length = next((length for length in _LENGTHS if len(example[0]) <= length), None)
        if length is None:
            continue
        waiting[length].append(example)
        if len(waiting[length]) == max(1, size // length):
            yield _stack(waiting[length], length)
            waiting[length] = []


def _stack(group: list[Example], length: int) -> tuple[torch.Tensor, ...]:
    fillers = (0, IGNORED, 0)
    return tuple(
        torch.tensor([example[i] + [filler] * (length - len(example[i])) for example in group])
        for i, filler in enumerate(fillers)
    )


def wanted_places(targets: torch.Tensor) -> torch.Tensor:
    """Return the flat indices of `targets` that are trained, padded with an ignored one to a round number."""
    flat = targets.flatten()
    places = (flat != IGNORED).nonzero().flatten()
    ignored = (flat == IGNORED).nonzero()[0]
    return torch.cat([places, ignored.repeat(-len(places) % 512)])
