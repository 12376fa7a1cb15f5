"""The rows that get a token at each step: mlx-lm's batch, which computes only what the rows ask for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, cast

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, GenerationBatch, PromptProcessingBatch

from mlxk2.runner.mlx.probabilities import Report, ReportedRow
from mlxk2.runner.mlx.sampler import Sampler, choose, without_numbers
from mlxk2.runner.prompt_cache import State, Tokens
from mlxk2.runner.request import GenerationRequest

# Its generators would change the wired limit as they come and go; it belongs to the model, and `backend.load` sets it.
import_module("mlx_lm.generate").maybe_set_recommended_wired_limit = lambda: None  # type: ignore[attr-defined]

# Tokens of prompts to read before the rows get their next ones.
_PIECE = 512
# On a GPU, larger pieces take less time in all, but make others wait; on the CPU, smaller ones take no longer in all.
_PIECE_ALONE_ON_GPU = 2048
_PIECE_ON_CPU = 256
# Of longer prompts, large pieces take gigabytes more memory, and save nothing.
_LONG_PROMPT = 1 << 14


class RowSampler(Sampler):
    """A row's sampler, which also knows of how many tokens the logprobs are wanted; None for nothing."""

    def __init__(self, request: GenerationRequest, position: int) -> None:
        super().__init__(request.sampling, position)
        self.reports = request.logprobs


class Decoding(GenerationBatch):  # type: ignore[misc]
    """A batch whose rows all have a `RowSampler`, and are sampled in one call for all with the same parameters.

    mlx-lm samples row by row unless all share one sampler, and at every step it normalises and hands out the logits of
    every row; this one does so only where a row reports them.
    """

    samplers: list[RowSampler]
    _next_tokens: mx.array
    _next_logprobs: list[ReportedRow | None]
    _num_tokens: list[int]
    max_tokens: list[int]

    def _step(self) -> tuple[list[int], list[ReportedRow | None]]:
        inputs, logprobs = self._next_tokens, self._next_logprobs
        self._current_tokens, self._current_logprobs = inputs, logprobs
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        logits, contexts = self._process(inputs, logits)
        self._next_tokens = choose(self.samplers, logits)
        if self._may_have_no_numbers():
            self._next_tokens = without_numbers(self.samplers, self._next_tokens, logits)
        self._next_logprobs = self._report(logits, self._next_tokens)
        if self._is_under_way():
            # While MLX computes this step, the one before it is read.
            mx.async_eval(self._next_tokens, _wanted(self._next_logprobs), contexts)  # type: ignore[no-untyped-call]
        mx.eval(inputs, _wanted(logprobs))
        tokens = cast(list[int], inputs.tolist())
        for row, token in zip(self.tokens, tokens, strict=True):
            row.append(max(token, 0))
        return tokens, logprobs

    def _may_have_no_numbers(self) -> bool:
        """Whether to look for NaN: in the logits of first tokens, and after token 0, which is chosen among NaN."""
        states = zip(self._num_tokens, self.tokens, strict=True)
        return any(count == 0 or (row and row[-1] == 0) for count, row in states)

    def _is_under_way(self) -> bool:
        """Whether any row will need the next token, and is to have it computed while it waits for this one.

        On the CPU that would only delay the first token: there it returns when most of the work is done.
        """
        first = 1 if mx.default_device() == mx.cpu else 0
        return any(first <= count < most - 1 for count, most in zip(self._num_tokens, self.max_tokens, strict=True))

    def _process(self, inputs: mx.array, logits: mx.array) -> tuple[mx.array, list[mx.array]]:
        """Return the logits after each row's processors, and the tokens so far of the rows that have some."""
        if not any(self.logits_processors):
            return logits, []
        rows, contexts = [], []
        for number, processors in enumerate(self.logits_processors):
            row = logits[number : number + 1]
            if processors:
                contexts.append(self._token_context[number].update_and_fetch(inputs[number : number + 1]))
            for processor in processors:
                row = processor(contexts[-1], row)
            rows.append(row)
        return mx.concatenate(rows), contexts

    def _report(self, logits: mx.array, tokens: mx.array) -> list[ReportedRow | None]:
        """Return the logprobs of these tokens for each row that reports them, None for the others."""
        counts = [sampler.reports for sampler in self.samplers]
        numbers = [number for number, count in enumerate(counts) if count is not None]
        if not numbers:
            return [None] * len(counts)
        rows = mx.array(numbers)
        report = Report(logits[rows], tokens[rows], [count for count in counts if count is not None])
        reported = iter(report.rows)
        return [next(reported) if count is not None else None for count in counts]


def _wanted(logprobs: Sequence[ReportedRow | None]) -> list[mx.array]:
    reports = {id(row.report): row.report for row in logprobs if row is not None}
    return [array for report in reports.values() for array in report.arrays]


def generator(model: Any, max_rows: int) -> BatchGenerator:
    """Return mlx-lm's generator with a `Decoding` in the place of its own batch, for prompts that have been read."""
    made = BatchGenerator(model, completion_batch_size=max_rows)
    made._generation_batch = Decoding.empty(model, made.sampler)
    return made


def join(
    generator: BatchGenerator,
    rows: list[int],
    states: Sequence[State | None],
    tokens: Sequence[Tokens],
    **options: list[Any],
) -> None:
    """Add rows to the batch of a generator: their states are those before the last of their tokens.

    Its own way would make copies of the states before it adds them, and choose their first tokens one by one.
    """
    read = PromptProcessingBatch(generator.model, rows, list(states))
    last = mx.array([row[-1] for row in tokens])
    before = [list(row[:-1]) for row in tokens]
    joining = Decoding(
        generator.model, rows, last, read.prompt_cache, before, fallback_sampler=generator.sampler, **options
    )
    generator._generation_batch.extend(joining)


def piece(*, others_decode: bool, longest: int) -> int:
    """Return how many tokens of prompts to read now, the longest of which has so many.

    After them the rows that get tokens have the next one, and a cancel is heard.
    """
    if mx.default_device() == mx.cpu:
        return _PIECE_ON_CPU
    return _PIECE if others_decode or longest > _LONG_PROMPT else _PIECE_ALONE_ON_GPU
