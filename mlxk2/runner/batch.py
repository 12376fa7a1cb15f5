"""Rows on mlx-lm's generators: together where the model's cache can be batched, else one after another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import mlx.core as mx
from mlx_lm.generate import StopSequences, generate_step
from mlx_lm.models.cache import make_prompt_cache

from mlxk2.runner import sampling
from mlxk2.runner.decoding import RowSampler, generator, join, piece
from mlxk2.runner.params import GenerationRequest
from mlxk2.runner.probabilities import Report
from mlxk2.runner.prompt_cache import PromptCache, Tokens
from mlxk2.runner.reading import Reader, Reading
from mlxk2.runner.rows import Place, Step, TokenLogprob

# For each second in which prompts are read, the rows that get tokens have at least that much of one.
_SHARE = 0.25


def can_batch(model: Any) -> bool:
    """Whether mlx-lm can put several rows of this model into one cache; chunked attention, for one, it can't."""
    return all(_can_merge(cache) for cache in make_prompt_cache(model))


def _can_merge(cache: Any) -> bool:
    return hasattr(cache, "merge") and all(map(_can_merge, getattr(cache, "caches", ())))


@dataclass
class _Answer:
    """A row of the batch: what it answers, the tokens that it goes on from, and how many may still come.

    `reading` is those tokens on their way into the model, until the row joins those that get a token at each step.
    """

    request: GenerationRequest
    tokens: Tokens
    left: int
    reading: Reading | None
    cached_tokens: int = 0

    @property
    def answered(self) -> int:
        """How many tokens of the answer are there already."""
        return len(self.tokens) - len(self.request.prompt)

    def spared(self, row: int) -> int:
        """Return how many tokens of its prompt need not be computed for a row that waits for its reading."""
        assert self.reading is not None
        # What is read is read for the first of the rows, and spared to all others.
        is_first = row == self.reading.rows[0]
        return min(self.reading.cached if is_first else len(self.tokens) - 1, len(self.request.prompt))


class Batch:
    """The rows that are generated together, each with its own sampler, processors and limits."""

    def __init__(self, model: Any, end_tokens: Collection[int], max_rows: int, prompts: PromptCache) -> None:
        self._generator = generator(model, max_rows)
        self._ends = StopSequences([(token,) for token in end_tokens])
        self._prompts = prompts
        self._reader = Reader(model, prompts, piece())
        self._max_rows = max_rows
        self._rows: dict[int, _Answer] = {}
        # Those whose prompt has been read, until there is room for them.
        self._ready: list[int] = []
        self._decoding = 0
        # Seconds that the rows are to have before more is read.
        self._debt = 0.0
        self._count = 0

    def insert(self, request: GenerationRequest, max_tokens: int, answered: Sequence[int] = ()) -> Place:
        """Add a row that goes on after these tokens of its answer; tell its number and what need not be computed."""
        self._count += 1
        tokens = (*request.prompt, *answered) if answered else request.prompt
        reading = self._reader.add(self._count, tokens, request.client)
        answer = _Answer(request, tokens, max_tokens - len(answered), reading)
        self._rows[self._count] = answer
        return Place(self._count, answer.spared(self._count))

    def next(self) -> list[Step]:
        """Read more of the prompts if it is their turn, then give each row its next token; the list may be empty."""
        with mx.stream(self._generator.stream):
            if self._reader and self._decoding + len(self._ready) < self._max_rows and not self._owed():
                self._read()
            room = self._max_rows - self._decoding
            joining, self._ready = self._ready[:room], self._ready[room:]
            if joining:
                self._join(joining)
        start = time.perf_counter()
        _, responses = self._generator.next()
        self._debt -= time.perf_counter() - start
        return [self._step(response) for response in responses]

    def _owed(self) -> bool:
        """Whether the rows that get tokens are still to have time for what was read before."""
        return self._decoding > 0 and self._debt > 0

    def _read(self) -> None:
        start = time.perf_counter()
        self._ready += [row for reading in self._reader.next() for row in reading.rows]
        self._debt = _SHARE * (time.perf_counter() - start)

    def _join(self, rows: list[int]) -> None:
        """Let rows whose prompts have been read get a token at each step."""
        answers = [self._rows[row] for row in rows]
        states = []
        for row, answer in zip(rows, answers, strict=True):
            assert answer.reading is not None
            answer.cached_tokens = answer.spared(row)
            states.append(answer.reading.state)
            answer.reading = None
        join(
            self._generator,
            rows,
            states,
            [answer.tokens for answer in answers],
            samplers=[RowSampler(answer.request, answer.answered) for answer in answers],
            logits_processors=[
                sampling.processors(answer.request.sampling, len(answer.request.prompt)) for answer in answers
            ],
            stop_sequences=[self._ends] * len(rows),
            max_tokens=[answer.left for answer in answers],
        )
        self._decoding += len(rows)

    def _step(self, response: Any) -> Step:
        row, token = response.uid, response.token
        answer = self._rows[row]
        if response.finish_reason is not None:
            del self._rows[row]
            self._decoding -= 1
            if self._prompts:
                self._prompts.keep(response.all_tokens, response.prompt_cache)
        logprob = response.logprobs.told(token) if response.logprobs is not None else None
        return Step(row, token, response.finish_reason, logprob, answer.cached_tokens)

    def remove(self, row: int) -> None:
        """Drop a row, whether it is waiting, in its prompt or in its answer; what was computed for it is kept."""
        answer = self._rows.pop(row)
        if row in self._ready:
            self._ready.remove(row)
        elif answer.reading is not None:
            self._reader.remove(row, answer.reading)
        else:
            self._decoding -= 1
            left = self._generator.remove([row], return_prompt_caches=bool(self._prompts))
            for state, tokens in left.values():
                self._prompts.keep(tokens, state)

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


def _logprob(request: GenerationRequest, token: int, logprobs: mx.array) -> TokenLogprob | None:
    """Return what the request wants to know of a token, given the logprobs [vocabulary] that it was chosen by."""
    if request.logprobs is None:
        return None
    return Report(logprobs[None], mx.array([token]), [request.logprobs]).rows[0].told(token)
