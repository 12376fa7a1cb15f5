"""The rows that get a token at each step: mlx-lm's batch, less what nobody asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, GenerationBatch
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from mlxk2.runner import sampling
from mlxk2.runner.params import GenerationRequest

# How many prompts are read together.
_PROMPTS = 8
# How many tokens of each prompt are read at a time: between them other rows get a token, and a cancel is heard.
_PIECE = 512
# On the CPU, smaller pieces take no longer in all.
_PIECE_ON_CPU = 256


class RowSampler(sampling.Sampler):
    """A row's sampler, which also knows whether anyone wants the logprobs of its tokens."""

    def __init__(self, request: GenerationRequest, position: int) -> None:
        super().__init__(request.sampling, position)
        self.reports = request.logprobs is not None


class Decoding(GenerationBatch):  # type: ignore[misc]
    """A batch whose rows all have a `RowSampler`, and are sampled in one call for all with the same parameters.

    mlx-lm samples row by row unless all share one sampler, and at every step it normalises and hands out the logits of
    every row; this one does so only where a row reports them.
    """

    samplers: list[RowSampler]
    _next_tokens: mx.array
    _next_logprobs: list[mx.array | None]
    _num_tokens: list[int]
    max_tokens: list[int]

    def _step(self) -> tuple[list[int], list[mx.array | None]]:
        inputs, logprobs = self._next_tokens, self._next_logprobs
        self._current_tokens, self._current_logprobs = inputs, logprobs
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        logits, contexts = self._process(inputs, logits)
        self._next_tokens = sampling.choose(self.samplers, logits)
        self._next_logprobs = self._report(logits)
        if self._is_under_way():
            # While MLX computes this step, the one before it is read.
            mx.async_eval(self._next_tokens, _wanted(self._next_logprobs), contexts)  # type: ignore[no-untyped-call]
        mx.eval(inputs, _wanted(logprobs))
        tokens = cast(list[int], inputs.tolist())
        for row, token in zip(self.tokens, tokens, strict=True):
            row.append(token)
        return tokens, logprobs

    def _is_under_way(self) -> bool:
        """Whether any row is between its first token and the last it may have.

        Else to compute ahead would only delay: on the CPU that returns when most of the work is done.
        """
        return any(0 < count < most - 1 for count, most in zip(self._num_tokens, self.max_tokens, strict=True))

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

    def _report(self, logits: mx.array) -> list[mx.array | None]:
        """Return the logprobs [vocabulary] of each row that reports them."""
        # In 16 bits the sum would be rounded to an eighth.
        rows = [
            logits[number].astype(mx.float32) if sampler.reports else None
            for number, sampler in enumerate(self.samplers)
        ]
        return [row - mx.logsumexp(row) if row is not None else None for row in rows]


def _wanted(logprobs: Sequence[mx.array | None]) -> list[mx.array]:
    return [row for row in logprobs if row is not None]


def generator(model: Any, max_rows: int) -> BatchGenerator:
    """Return mlx-lm's generator with a `Decoding` in the place of its own batch."""
    made = BatchGenerator(
        model,
        completion_batch_size=max_rows,
        prefill_batch_size=min(max_rows, _PROMPTS if _can_pad(model) else 1),
        prefill_step_size=_PIECE_ON_CPU if mx.default_device() == mx.cpu else _PIECE,
    )
    # Rows that have been read are moved into the batch that is there, so it need not be replaced anywhere else.
    made._generation_batch = Decoding.empty(model, made.sampler)
    return made


def _can_pad(model: Any) -> bool:
    """Whether prompts can be padded to one length: some recurrent models would take the padding for tokens."""
    return all(type(layer) in (KVCache, RotatingKVCache) for layer in make_prompt_cache(model))
