"""Rows on mlx-lm's generators: together where the model's cache can be batched, else one after another."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any, Literal, NamedTuple, cast

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, StopSequences, generate_step
from mlx_lm.models.cache import make_prompt_cache

from mlxk2.runner import sampling
from mlxk2.runner.params import GenerationRequest
from mlxk2.runner.runner import Step, TokenLogprob

# How many prompts are read together.
_PROMPTS = 8
# How many tokens of each prompt are read at a time: between them other rows get a token, and a cancel is heard.
_PIECE = 512


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


class Batch:
    """The rows that are generated together, each with its own sampler, processors and limits."""

    def __init__(self, model: Any, end_tokens: Collection[int], max_rows: int) -> None:
        self._generator = BatchGenerator(
            model,
            completion_batch_size=max_rows,
            prefill_batch_size=min(max_rows, _PROMPTS),
            prefill_step_size=_PIECE,
        )
        self._ends = StopSequences([(token,) for token in end_tokens])
        self._requests: dict[int, GenerationRequest] = {}

    def insert(self, request: GenerationRequest, max_tokens: int) -> int:
        """Add a row; return its number."""
        (row,) = self._generator.insert(
            [list(request.prompt)],
            max_tokens=[max_tokens],
            samplers=[sampling.sampler(request.sampling)],
            logits_processors=[sampling.processors(request.sampling, len(request.prompt))],
            stop_sequences=[self._ends],
        )
        self._requests[row] = request
        return int(row)

    def next(self) -> list[Step]:
        """Process the next part of the prompts, or the next token of every row; the list may be empty."""
        _, responses = self._generator.next()
        return [self._step(response) for response in responses]

    def _step(self, response: Any) -> Step:
        row, token = response.uid, response.token
        request = self._requests[row] if response.finish_reason is None else self._requests.pop(row)
        return Step(row, token, response.finish_reason, _logprob(request, token, response.logprobs))

    def remove(self, row: int) -> None:
        """Drop a row, whether it is waiting, in its prompt or in its answer."""
        del self._requests[row]
        self._generator.remove([row])

    def close(self) -> None:
        """Give back what the generator has reserved."""
        with contextlib.suppress(RuntimeError):
            self._generator.close()


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
        self._rows[self._count] = _Row(request, tokens, max_tokens)
        return self._count

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
