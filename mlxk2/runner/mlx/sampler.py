"""Choose the next token with MLX: samplers and logits processors for the sequences of a batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
from mlx_lm.sample_utils import (
    apply_min_p,
    apply_top_k,
    apply_top_p,
    make_frequency_penalty,
    make_presence_penalty,
    make_repetition_penalty,
)

from mlxk2.runner.request import Biases, Sampling
from mlxk2.runner.sequences import NO_TOKEN

# Tokens so far [n], logits [1, vocabulary] → logits [1, vocabulary]
Processor = Callable[[mx.array, mx.array], mx.array]

# Models repeat phrases within a few sentences; mlx-lm's default of 20 tokens covers only one sentence.
_REPETITION_WINDOW_TOKENS = 64
_NO_WINDOW_TOKENS = 1 << 30  # More than any completion has.


@dataclass(frozen=True)
class OnCompletion:
    """A processor that gives another processor only the tokens of the completion, without those of the prompt."""

    prompt_length: int
    processor: Processor

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        return self.processor(tokens[self.prompt_length :], logits)


@dataclass(frozen=True)
class AddBiases:
    """A processor that adds biases to the logits of their tokens."""

    biases: Biases

    def __call__(self, _: mx.array, logits: mx.array) -> mx.array:
        width, arrays = logits.shape[-1], self.biases.arrays
        if width not in arrays:
            # MLX does not check indices; with a wrong one it would write past the array and crash.
            known = {token: value for token, value in self.biases if token < width}
            arrays[width] = mx.array(list(known), dtype=mx.int32), mx.array(list(known.values()), dtype=mx.float32)
        tokens, values = arrays[width]
        return logits.at[:, tokens].add(values.astype(logits.dtype))


@dataclass(frozen=True)
class WithEarlierTokens:
    """A processor that gives another processor the `earlier` tokens too, for mlx-lm's generator of one sequence."""

    earlier: mx.array
    processor: Processor

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        return self.processor(mx.concatenate([self.earlier, tokens.astype(mx.uint32)]), logits)


class Cut(NamedTuple):
    """The parameters of `Sampling` that exclude unlikely tokens and scale the logits."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float

    def scores(self, logits: mx.array) -> mx.array:
        """Apply the parameters to logits [sequences, vocabulary] in mlx-lm's order; in float32 nothing overflows."""
        logits = logits.astype(mx.float32)
        if self.top_p < 1:
            logits = apply_top_p(logits - mx.logsumexp(logits, axis=-1, keepdims=True), self.top_p)
        if self.min_p > 0:
            logits = apply_min_p(logits, self.min_p)
        if 0 < self.top_k < logits.shape[-1]:
            logits = apply_top_k(logits, self.top_k)
        return logits * (1 / self.temperature)


class Sampler:
    """Chooses the tokens of one sequence; a choice depends on seed and token position, not on the batch."""

    def __init__(self, sampling: Sampling, position: int = 0) -> None:
        cut = Cut(sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
        self.cut = None if sampling.is_greedy else cut
        seed = random.SystemRandom().getrandbits(64) if sampling.seed is None else sampling.seed % (1 << 64)
        self._draws = random.Random(seed)
        for _ in range(position):
            self.draw()

    def draw(self) -> tuple[int, int]:
        """Return the random key of the next token: two 32-bit halves, as MLX needs it."""
        return self._draws.getrandbits(32), self._draws.getrandbits(32)

    def __call__(self, logits: mx.array) -> mx.array:
        """Choose from logits or logprobs [1, vocabulary]; return the token [1]."""
        return choose([self], logits)


def choose(samplers: Sequence[Sampler], logits: mx.array) -> mx.array:
    """Return a token for each sequence of logits [sequences, vocabulary], with one call for all equal parameters."""
    groups: dict[Cut | None, list[int]] = {}
    for number, sampler in enumerate(samplers):
        groups.setdefault(sampler.cut, []).append(number)
    if len(groups) == 1:
        return _choose_alike(samplers, logits)
    chosen = [_choose_alike([samplers[n] for n in group], logits[mx.array(group)]) for group in groups.values()]
    order = [number for group in groups.values() for number in group]
    return mx.concatenate(chosen)[mx.array(sorted(range(len(order)), key=order.__getitem__))]


def replace_nan_choices(samplers: Sequence[Sampler], tokens: mx.array, logits: mx.array) -> mx.array:
    """Return the chosen tokens [sequences]; replace a token that was chosen from NaN logits by NO_TOKEN.

    MLX counts a negative index from the end, so the model can continue before Python reads the token.
    """
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    # With one NaN, all probabilities are NaN, so any NaN makes a random draw invalid. A greedy choice is still valid.
    draws = mx.array([sampler.cut is not None for sampler in samplers])
    has_none = mx.isnan(chosen) | (draws & mx.any(mx.isnan(logits), axis=-1))
    return mx.where(has_none, mx.array(NO_TOKEN, dtype=mx.int32), tokens.astype(mx.int32))


def _choose_alike(samplers: Sequence[Sampler], logits: mx.array) -> mx.array:
    cut = samplers[0].cut
    if cut is None:
        return mx.argmax(logits, axis=-1)
    scores = cut.scores(logits)
    keys = mx.array([sampler.draw() for sampler in samplers], dtype=mx.uint32)
    # The maximum after adding Gumbel noise is a draw from the softmax (https://arxiv.org/abs/1611.01144, eq. 1).
    noise = mx.vmap(lambda key: mx.random.gumbel(scores.shape[1:], key=key))(keys)
    return mx.argmax(scores + noise, axis=-1)


def processors(sampling: Sampling, prompt_length: int) -> list[Processor]:
    """Return the processors that change the logits before sampling; each processor takes time at each step.

    The repetition penalty covers a window over the prompt and the completion. OpenAI's presence and frequency penalties
    count the tokens of the whole completion, but not of the prompt.
    """
    found: list[Processor] = []
    if sampling.logit_bias:
        found.append(AddBiases(Biases(sampling.logit_bias)))
    if sampling.repetition_penalty != 1:
        found.append(make_repetition_penalty(sampling.repetition_penalty, _REPETITION_WINDOW_TOKENS))
    if sampling.presence_penalty:
        found.append(OnCompletion(prompt_length, make_presence_penalty(sampling.presence_penalty, _NO_WINDOW_TOKENS)))
    if sampling.frequency_penalty:
        found.append(OnCompletion(prompt_length, make_frequency_penalty(sampling.frequency_penalty, _NO_WINDOW_TOKENS)))
    return found
