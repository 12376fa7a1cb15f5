"""The sequences that get a token at each step: mlx-lm's batch, changed to compute logprobs only if requested."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, GenerationBatch, PromptProcessingBatch

from mlxk2.runner.mlx.sampler import Sampler, choose, replace_nan_choices
from mlxk2.runner.output.logprobs import TokenLogprob, TopTokens
from mlxk2.runner.prompt_cache import Tokens
from mlxk2.runner.request import GenerationRequest

# Keep mlx-lm's generators from changing the wired limit; `loader.load` sets it once for the model.
sys.modules[BatchGenerator.__module__].maybe_set_recommended_wired_limit = lambda: None  # type: ignore[attr-defined]


class LogprobReport:
    """The logprobs of chosen tokens [sequences] and of the most likely ones, from logits [sequences, vocabulary].

    MLX computes them when `arrays` are evaluated; after that, `sequences` give the results.
    """

    def __init__(self, logits: mx.array, chosen: mx.array, counts: Sequence[int]) -> None:
        # In 16 bits, the sum would be rounded to multiples of 1/8.
        logits = logits.astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        top = min(max(counts), logits.shape[-1])
        self._chosen = mx.take_along_axis(logprobs, chosen[:, None], axis=-1)[:, 0]
        likeliest = mx.argpartition(-logprobs, kth=max(top - 1, 0), axis=-1)[:, :top]
        values = mx.take_along_axis(logprobs, likeliest, axis=-1)
        order = mx.argsort(-values, axis=-1)
        self._likeliest = mx.take_along_axis(likeliest, order, axis=-1)
        self._values = mx.take_along_axis(values, order, axis=-1)
        self._computed: tuple[list[float], list[list[int]], list[list[float]]] | None = None
        self.sequences = [SequenceReport(self, number, count) for number, count in enumerate(counts)]

    @property
    def arrays(self) -> list[mx.array]:
        """The arrays to evaluate."""
        return [self._chosen, self._likeliest, self._values]

    def read(self, number: int, token: int, count: int) -> TokenLogprob:
        """Return the logprobs of a sequence's token and of the `count` most likely ones."""
        if self._computed is None:
            # Read the arrays once for all sequences, because each access waits for MLX.
            self._computed = cast(
                tuple[list[float], list[list[int]], list[list[float]]], tuple(array.tolist() for array in self.arrays)
            )
        chosen, likeliest, values = self._computed
        return TokenLogprob(token, chosen[number], TopTokens(likeliest[number][:count], values[number][:count]))


class SequenceReport(NamedTuple):
    """One sequence of a report, and the number of most likely tokens that it reports."""

    report: LogprobReport
    number: int
    top: int

    def read(self, token: int) -> TokenLogprob:
        """Return the logprobs of the sequence's token and of the most likely ones."""
        return self.report.read(self.number, token, self.top)


class SequenceSampler(Sampler):
    """A sequence's sampler that also has the number of most likely tokens to report; None reports no logprobs."""

    def __init__(self, request: GenerationRequest, position: int) -> None:
        super().__init__(request.sampling, position)
        self.likeliest_count = request.likeliest_count


class Decoding(GenerationBatch):  # type: ignore[misc]
    """A batch whose sequences have a `SequenceSampler` each; one call samples all sequences with equal parameters.

    mlx-lm samples sequences one by one unless all share one sampler, and computes the logprobs of every sequence at
    every step. This class computes them only for sequences that report logprobs.
    """

    samplers: list[SequenceSampler]
    _next_tokens: mx.array
    _next_logprobs: list[SequenceReport | None]
    _num_tokens: list[int]
    max_tokens: list[int]

    def _step(self) -> tuple[list[int], list[SequenceReport | None]]:
        inputs, logprobs = self._next_tokens, self._next_logprobs
        self._current_tokens, self._current_logprobs = inputs, logprobs
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        logits, contexts = self._process(inputs, logits)
        self._next_tokens = choose(self.samplers, logits)
        # Check for NaN at the first token of a sequence, and after token 0, which argmax chooses from NaN.
        counted = zip(self._num_tokens, self.tokens, strict=True)
        if any(count == 0 or (sequence and sequence[-1] == 0) for count, sequence in counted):
            self._next_tokens = replace_nan_choices(self.samplers, self._next_tokens, logits)
        self._next_logprobs = self._report(logits, self._next_tokens)
        if self._is_under_way():
            # Start this step now; while MLX computes it, Python reads the previous one.
            mx.async_eval(self._next_tokens, _reported_arrays(self._next_logprobs), contexts)  # type: ignore[no-untyped-call]
        mx.eval(inputs, _reported_arrays(logprobs))
        tokens = cast(list[int], inputs.tolist())
        for sequence, token in zip(self.tokens, tokens, strict=True):
            sequence.append(max(token, 0))
        return tokens, logprobs

    def _is_under_way(self) -> bool:
        """Return whether to compute the next token while this one is read, because a sequence will need it.

        On the CPU, `async_eval` returns only when most of the work is done, so it would delay the first token.
        """
        first = 1 if mx.default_device() == mx.cpu else 0
        return any(first <= count < limit - 1 for count, limit in zip(self._num_tokens, self.max_tokens, strict=True))

    def _process(self, inputs: mx.array, logits: mx.array) -> tuple[mx.array, list[mx.array]]:
        """Apply each sequence's processors to its logits; return the logits and the token arrays of the processors."""
        if not any(self.logits_processors):
            return logits, []
        processed, contexts = [], []
        for number, processors in enumerate(self.logits_processors):
            own = logits[number : number + 1]
            if processors:
                contexts.append(self._token_context[number].update_and_fetch(inputs[number : number + 1]))
            for processor in processors:
                own = processor(contexts[-1], own)
            processed.append(own)
        return mx.concatenate(processed), contexts

    def _report(self, logits: mx.array, tokens: mx.array) -> list[SequenceReport | None]:
        """Return a report for each sequence that reports logprobs, and None for the others."""
        counts = [sampler.likeliest_count for sampler in self.samplers]
        numbers = [number for number, count in enumerate(counts) if count is not None]
        if not numbers:
            return [None] * len(counts)
        indices = mx.array(numbers)
        report = LogprobReport(logits[indices], tokens[indices], [count for count in counts if count is not None])
        reported = iter(report.sequences)
        return [next(reported) if count is not None else None for count in counts]


def _reported_arrays(logprobs: Sequence[SequenceReport | None]) -> list[mx.array]:
    reports = {id(sequence.report): sequence.report for sequence in logprobs if sequence is not None}
    return [array for report in reports.values() for array in report.arrays]


def make_generator(model: Any, max_sequences: int) -> BatchGenerator:
    """Return mlx-lm's generator with a `Decoding` instead of its own batch."""
    made = BatchGenerator(model, completion_batch_size=max_sequences)
    made._generation_batch = Decoding.empty(model, made.sampler)
    return made


def join(
    generator: BatchGenerator,
    sequence_ids: list[int],
    states: Sequence[list[Any] | None],
    tokens: Sequence[Tokens],
    **options: list[Any],
) -> None:
    """Add sequences to the batch of a generator; each state is the one before the sequence's last token.

    mlx-lm itself would copy the states first, and choose the first tokens one by one.
    """
    read = PromptProcessingBatch(generator.model, sequence_ids, list(states))
    last = mx.array([sequence[-1] for sequence in tokens])
    before = [list(sequence[:-1]) for sequence in tokens]
    joining = Decoding(
        generator.model, sequence_ids, last, read.prompt_cache, before, fallback_sampler=generator.sampler, **options
    )
    generator._generation_batch.extend(joining)
