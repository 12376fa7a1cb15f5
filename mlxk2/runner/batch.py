"""Rows on mlx-lm's generators: together where the model's cache can be batched, else one after another."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import mlx.core as mx
from mlx_lm.generate import StopSequences, generate_step
from mlx_lm.models.cache import make_prompt_cache

from mlxk2.runner import sampling
from mlxk2.runner.decoding import RowSampler, generator
from mlxk2.runner.params import GenerationRequest
from mlxk2.runner.prompt_cache import Prefix, PromptCache
from mlxk2.runner.rows import Place, Step, TokenLogprob

# How many new tokens of a prompt make it worth keeping their state before the answer has ended.
_WORTH = 64


def can_batch(model: Any) -> bool:
    """Whether mlx-lm can put several rows of this model into one cache; chunked attention, for one, it can't."""
    return all(_can_merge(cache) for cache in make_prompt_cache(model))


def _can_merge(cache: Any) -> bool:
    return hasattr(cache, "merge") and all(map(_can_merge, getattr(cache, "caches", ())))


def _logprob(request: GenerationRequest, token: int, logprobs: mx.array) -> TokenLogprob | None:
    """Return what the request wants to know of a token, given the logprobs [vocabulary] that it was chosen by."""
    if request.logprobs is None:
        return None
    count = min(request.logprobs, logprobs.shape[-1])
    likeliest = mx.argpartition(-logprobs, kth=count - 1)[:count] if count else mx.array([], dtype=mx.int32)
    tokens, values = cast(list[int], likeliest.tolist()), cast(list[float], logprobs[likeliest].tolist())
    top = sorted(zip(tokens, values, strict=True), key=lambda entry: -entry[1])
    return TokenLogprob(token, cast(float, logprobs[token].item()), tuple(top))


@dataclass
class _Reading:
    """A row on its way: its request, and after how many tokens of its prompt the state is worth keeping."""

    request: GenerationRequest
    stops: tuple[int, ...]


class Batch:
    """The rows that are generated together, each with its own sampler, processors and limits."""

    def __init__(self, model: Any, end_tokens: Collection[int], max_rows: int, prompts: PromptCache) -> None:
        self._generator = generator(model, max_rows)
        self._ends = StopSequences([(token,) for token in end_tokens])
        self._prompts = prompts
        self._rows: dict[int, _Reading] = {}

    def insert(self, request: GenerationRequest, max_tokens: int, answered: Sequence[int] = ()) -> Place:
        """Add a row that goes on after these tokens of its answer; tell its number and what need not be computed."""
        tokens = [*request.prompt, *answered]
        prefix = self._prompts.find(tokens) if self._prompts else Prefix(None, 0, 0)
        stops = _stops(prefix, len(tokens)) if self._prompts else ()
        bounds = (prefix.length, *stops, len(tokens))
        (row,) = self._generator.insert_segments(
            [[tokens[start:end] for start, end in itertools.pairwise(bounds)]],
            max_tokens=[max_tokens - len(answered)],
            caches=[prefix.state],
            all_tokens=[tokens[: prefix.length]],
            samplers=[RowSampler(request, len(answered))],
            logits_processors=[sampling.processors(request.sampling, len(request.prompt))],
            stop_sequences=[self._ends],
        )
        self._rows[row] = _Reading(request, stops)
        return Place(row, min(prefix.length, len(request.prompt)))

    def next(self) -> list[Step]:
        """Process the next part of the prompts, or the next token of every row; the list may be empty."""
        read, responses = self._generator.next()
        for progress in read:
            if progress.end_of_segment and not progress.end_of_prompt:
                self._keep_prompt(progress.uid)
        return [self._step(response) for response in responses]

    def _step(self, response: Any) -> Step:
        row, token = response.uid, response.token
        request = self._rows[row].request
        if response.finish_reason is not None:
            del self._rows[row]
            if self._prompts:
                self._prompts.keep(response.all_tokens, response.prompt_cache)
        return Step(row, token, response.finish_reason, _logprob(request, token, response.logprobs))

    def _keep_prompt(self, row: int) -> None:
        """Keep the state of a prompt that has been read up to the end of a segment, if this is where it is wanted."""
        if self._rows[row].stops:
            state, tokens = self._generator.extract_cache([row])[row]
            if len(tokens) in self._rows[row].stops:
                self._prompts.keep(tokens, state)

    def remove(self, row: int) -> None:
        """Drop a row, whether it is waiting, in its prompt or in its answer; what was computed for it is kept."""
        del self._rows[row]
        left = self._generator.remove([row], return_prompt_caches=bool(self._prompts))
        for state, tokens in left.values():
            if tokens:
                self._prompts.keep(tokens, state)

    def close(self) -> None:
        """Give back what the generator has reserved."""
        with contextlib.suppress(RuntimeError):
            self._generator.close()


def _stops(prefix: Prefix, length: int) -> tuple[int, ...]:
    """Return after how many tokens of a prompt of that length to stop reading, in order to keep the state.

    Before the last token, for those who ask the same or go on from there; and where an earlier prompt took another
    turn, which it could be no more than the first to do.
    """
    stops = (prefix.shared, length - 1)
    return tuple(stop for last, stop in zip((prefix.length, *stops), stops, strict=False) if stop - last >= _WORTH)


class _Row(NamedTuple):
    """A request, what generates its tokens, and how many may still come."""

    request: GenerationRequest
    tokens: Iterator[tuple[int, mx.array]]
    left: int


class Queue:
    """Rows that are generated one after another, in the order they came."""

    def __init__(self, model: Any, end_tokens: Collection[int]) -> None:
        self._model = model
        self._ends = end_tokens
        self._rows: dict[int, _Row] = {}
        self._count = 0

    def insert(self, request: GenerationRequest, max_tokens: int, answered: Sequence[int] = ()) -> Place:
        """Add a row that goes on after these tokens of its answer; tell its number."""
        left = max_tokens - len(answered)
        tokens = generate_step(
            mx.array([*request.prompt, *answered]),
            self._model,
            max_tokens=left,
            sampler=sampling.Sampler(request.sampling, len(answered)),
            logits_processors=sampling.processors(request.sampling, len(request.prompt)),
        )
        self._count += 1
        self._rows[self._count] = _Row(request, tokens, left)
        return Place(self._count)

    def next(self) -> list[Step]:
        """Return the next token of the oldest row, after all of its prompt if it is the first."""
        row, (request, tokens, left) = next(iter(self._rows.items()))
        token, logprobs = next(tokens)
        self._rows[row] = _Row(request, tokens, left - 1)
        reason: Literal["stop", "length"] | None = "stop" if token in self._ends else "length" if left == 1 else None
        step = Step(row, token, reason, _logprob(request, token, logprobs))
        if reason:
            self.remove(row)
        return [step]

    def remove(self, row: int) -> None:
        """Drop a row, whether it is waiting or in its answer."""
        del self._rows[row]

    def close(self) -> None:
        """Drop all rows."""
        self._rows.clear()
