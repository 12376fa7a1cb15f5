"""Rows on mlx-lm's generators: together where the model's cache can be batched, else one after another."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import mlx.core as mx
from mlx_lm.generate import StopSequences, generate_step, generation_stream
from mlx_lm.models.cache import make_prompt_cache

from mlxk2.runner.mlx import sampler
from mlxk2.runner.mlx.decoding import RowSampler, generator, join, piece
from mlxk2.runner.mlx.prefill import Reader, Reading
from mlxk2.runner.mlx.probabilities import Report
from mlxk2.runner.prompt_cache import PromptCache, Tokens
from mlxk2.runner.request import GenerationRequest
from mlxk2.runner.sequences import NO_TOKEN, Place, Step, TokenLogprob

# Seconds for the rows that get tokens, for each second in which prompts are read.
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

    def processors(self) -> list[sampler.Processor]:
        """Return what changes the row's logits."""
        return sampler.processors(self.request.sampling, len(self.request.prompt))

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
        self._reader = Reader(model, prompts)
        self._max_rows = max_rows
        self._rows: dict[int, _Answer] = {}
        # Those whose prompt has been read, until there is room for them.
        self._ready: list[int] = []
        self._decoding = 0
        # Seconds that the rows are to have before more is read.
        self._debt = 0.0
        self._count = 0

    def insert(self, request: GenerationRequest, max_tokens: int, answered: Sequence[int] = ()) -> Place:
        """Add a row that goes on after these tokens of its answer; return its place."""
        self._count += 1
        answer = _answer(self._reader, self._count, request, max_tokens, answered)
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
        budget = piece(others_decode=self._decoding > 0, longest=self._reader.longest)
        self._ready += [row for reading in self._reader.next(budget) for row in reading.rows]
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
            logits_processors=[answer.processors() for answer in answers],
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
        has_logprob = response.logprobs is not None and token != NO_TOKEN
        logprob = response.logprobs.told(token) if has_logprob else None
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
        """Drop all rows, and give their memory back to the system."""
        _finish(self._generator.stream)
        self._rows.clear()
        self._ready.clear()
        del self._generator, self._reader
        mx.clear_cache()


class _Current(NamedTuple):
    """The row that is generated now, what generates its tokens, and how many may still come."""

    row: int
    tokens: Iterator[tuple[int, mx.array]]
    left: int


class Queue:
    """Rows that are generated one after another, in the order in which their prompts have been read."""

    def __init__(self, model: Any, end_tokens: Collection[int]) -> None:
        self._model = model
        self._ends = end_tokens
        self._reader = Reader(model, PromptCache(0))
        self._rows: dict[int, _Answer] = {}
        self._ready: list[int] = []
        self._current: _Current | None = None
        self._count = 0

    def insert(self, request: GenerationRequest, max_tokens: int, answered: Sequence[int] = ()) -> Place:
        """Add a row that goes on after these tokens of its answer; return its place."""
        self._count += 1
        answer = _answer(self._reader, self._count, request, max_tokens, answered)
        self._rows[self._count] = answer
        return Place(self._count, answer.spared(self._count))

    def next(self) -> list[Step]:
        """Return the next token of the row that is generated, or read a budget of tokens of the prompts."""
        if self._current is None and not self._ready:
            budget = piece(others_decode=False, longest=self._reader.longest)
            self._ready += [row for reading in self._reader.next(budget) for row in reading.rows]
        if self._current is None and self._ready:
            self._current = self._begun(self._ready.pop(0))
        return [self._step(self._current)] if self._current is not None else []

    def _begun(self, row: int) -> _Current:
        answer = self._rows[row]
        assert answer.reading is not None
        answer.cached_tokens = answer.spared(row)
        tokens = generate_step(
            mx.array(answer.tokens[-1:]),
            self._model,
            max_tokens=answer.left,
            sampler=sampler.Sampler(answer.request.sampling, answer.answered),
            logits_processors=[_after(answer.tokens[:-1], processor) for processor in answer.processors()],
            # Others may go on from the same state.
            prompt_cache=copy.deepcopy(answer.reading.state),
        )
        answer.reading = None
        return _Current(row, tokens, answer.left)

    def _step(self, current: _Current) -> Step:
        answer = self._rows[current.row]
        token, logprobs = next(current.tokens)
        if token == 0 and mx.isnan(logprobs[token]).item():
            token = NO_TOKEN
        is_last = current.left == 1
        reason: Literal["stop", "length"] | None = "stop" if token in self._ends else "length" if is_last else None
        logprob = _logprob(answer.request, token, logprobs) if token != NO_TOKEN else None
        self._current = current._replace(left=current.left - 1)
        if reason:
            self.remove(current.row)
        return Step(current.row, token, reason, logprob, answer.cached_tokens)

    def remove(self, row: int) -> None:
        """Drop a row, whether it is waiting, in its prompt or in its answer."""
        answer = self._rows.pop(row)
        if row in self._ready:
            self._ready.remove(row)
        elif answer.reading is not None:
            self._reader.remove(row, answer.reading)
        else:
            self._current = None

    def close(self) -> None:
        """Drop all rows, and give their memory back to the system."""
        _finish(generation_stream)
        self._rows.clear()
        self._ready.clear()
        self._current = None
        del self._reader
        mx.clear_cache()


def _answer(
    reader: Reader, row: int, request: GenerationRequest, max_tokens: int, answered: Sequence[int]
) -> _Answer:
    """Return what a row answers, whose prompt waits to be read."""
    tokens = (*request.prompt, *answered) if answered else request.prompt
    return _Answer(request, tokens, max_tokens - len(answered), reader.add(row, tokens, request.client))


def _after(before: Tokens, processor: sampler.Processor) -> sampler.Processor:
    """Return a processor that is given the tokens since then, for one that wants those before as well."""
    seen = mx.array(before, dtype=mx.uint32)
    return lambda tokens, logits: processor(mx.concatenate([seen, tokens.astype(mx.uint32)]), logits)


def _finish(stream: Any) -> None:
    """Wait for what MLX still computes for rows that are dropped: what fails late must not fail the next batch."""
    with contextlib.suppress(RuntimeError):
        mx.synchronize(stream)


def _logprob(request: GenerationRequest, token: int, logprobs: mx.array) -> TokenLogprob | None:
    """Return what the request wants to know of a token, given the logprobs [vocabulary] that it was chosen by."""
    if request.logprobs is None:
        return None
    return Report(logprobs[None], mx.array([token]), [request.logprobs]).rows[0].told(token)
