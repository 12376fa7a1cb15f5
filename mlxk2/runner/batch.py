"""Rows on mlx-lm's generators: together where the model's cache can be batched, else one after another."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, StopSequences, generate_step
from mlx_lm.models.cache import make_prompt_cache

from mlxk2.runner import sampling
from mlxk2.runner.params import GenerationRequest
from mlxk2.runner.runner import Step


def can_batch(model: Any) -> bool:
    """Whether mlx-lm can put several rows of this model into one cache; chunked attention, for one, it can't."""
    return all(_can_merge(cache) for cache in make_prompt_cache(model))


def _can_merge(cache: Any) -> bool:
    return hasattr(cache, "merge") and all(map(_can_merge, getattr(cache, "caches", ())))


class Batch:
    """The rows that are generated together, each with its own sampler, processors and limits."""

    def __init__(self, model: Any, end_tokens: Collection[int]) -> None:
        self._generator = BatchGenerator(model)
        self._ends = StopSequences([(token,) for token in end_tokens])

    def insert(self, request: GenerationRequest, max_tokens: int) -> int:
        """Add a row; return its number."""
        (row,) = self._generator.insert(
            [list(request.prompt)],
            max_tokens=[max_tokens],
            samplers=[sampling.sampler(request.sampling)],
            logits_processors=[sampling.processors(request.sampling, len(request.prompt))],
            stop_sequences=[self._ends],
        )
        return int(row)

    def next(self) -> list[Step]:
        """Process the next part of the prompts, or the next token of every row; the list may be empty."""
        _, responses = self._generator.next()
        return [Step(response.uid, response.token, response.finish_reason) for response in responses]

    def remove(self, row: int) -> None:
        """Drop a row, whether it is waiting, in its prompt or in its answer."""
        self._generator.remove([row])

    def close(self) -> None:
        """Give back what the generator has reserved."""
        with contextlib.suppress(RuntimeError):
            self._generator.close()


class Queue:
    """Rows that are generated one after another, in the order they came."""

    def __init__(self, model: Any, end_tokens: Collection[int]) -> None:
        self._model = model
        self._ends = end_tokens
        self._rows: dict[int, tuple[Iterator[tuple[int, mx.array]], int]] = {}
        self._count = 0

    def insert(self, request: GenerationRequest, max_tokens: int) -> int:
        """Add a row; return its number."""
        tokens = generate_step(
            mx.array(request.prompt),
            self._model,
            max_tokens=max_tokens,
            sampler=sampling.sampler(request.sampling),
            logits_processors=sampling.processors(request.sampling, len(request.prompt)),
        )
        self._count += 1
        self._rows[self._count] = (tokens, max_tokens)
        return self._count

    def next(self) -> list[Step]:
        """Return the next token of the oldest row, after all of its prompt if it is the first."""
        row, (tokens, left) = next(iter(self._rows.items()))
        token, _ = next(tokens)
        self._rows[row] = (tokens, left - 1)
        step = Step(row, token, "stop" if token in self._ends else "length" if left == 1 else None)
        if step.finish_reason:
            self.remove(row)
        return [step]

    def remove(self, row: int) -> None:
        """Drop a row, whether it is waiting or in its answer."""
        del self._rows[row]

    def close(self) -> None:
        """Drop all rows."""
        self._rows.clear()
