"""How MLX chooses the next token: samplers and logits processors for one row of a batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
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

# tokens so far [n], logits [1, vocabulary] → logits [1, vocabulary]
Processor = Callable[[mx.array, mx.array], mx.array]

# A model's own phrases repeat over a few sentences; mlx-lm's 20 tokens see no further than one.
_REPETITION_WINDOW = 64


class Cut(NamedTuple):
    """How the unlikely tokens are dropped and the rest flattened, by the parameters of `Sampling`."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float

    def scores(self, logits: mx.array) -> mx.array:
        """Return logits [rows, vocabulary] cut in mlx-lm's order; in float32, which can't overflow."""
        logits = logits.astype(mx.float32)
        if self.top_p < 1:
            logits = apply_top_p(logits - mx.logsumexp(logits, axis=-1, keepdims=True), self.top_p)
        if self.min_p > 0:
            logits = apply_min_p(logits, self.min_p)
        if 0 < self.top_k < logits.shape[-1]:
            logits = apply_top_k(logits, self.top_k)
        return logits * (1 / self.temperature)


class Sampler:
    """Chooses the tokens of one row: a seed and a token's position decide alone, whatever rows are beside it."""

    def __init__(self, sampling: Sampling, position: int = 0) -> None:
        self.cut = None if sampling.greedy else _cut(sampling)
        seed = random.SystemRandom().getrandbits(64) if sampling.seed is None else sampling.seed % (1 << 64)
        self._draws = random.Random(seed)
        for _ in range(position):
            self.draw()

    def draw(self) -> tuple[int, int]:
        """Return the key of the next token's randomness, as MLX wants it: two halves."""
        return self._draws.getrandbits(32), self._draws.getrandbits(32)

    def __call__(self, logits: mx.array) -> mx.array:
        """Choose from logits or logprobs [1, vocabulary]; return the token [1]."""
        return choose([self], logits)


def choose(samplers: Sequence[Sampler], logits: mx.array) -> mx.array:
    """Return a token for each row of logits [rows, vocabulary], in one go for all rows with the same parameters."""
    groups: dict[Cut | None, list[int]] = {}
    for row, sampler in enumerate(samplers):
        groups.setdefault(sampler.cut, []).append(row)
    if len(groups) == 1:
        return _choose_alike(samplers, logits)
    chosen = [_choose_alike([samplers[row] for row in rows], logits[mx.array(rows)]) for rows in groups.values()]
    order = [row for rows in groups.values() for row in rows]
    return mx.concatenate(chosen)[mx.array(sorted(range(len(order)), key=order.__getitem__))]


def without_numbers(samplers: Sequence[Sampler], tokens: mx.array, logits: mx.array) -> mx.array:
    """Return the tokens [rows] chosen from logits [rows, vocabulary], NO_TOKEN for each that was chosen among NaN.

    MLX counts a negative index from the end, so the model can compute on before the token is read.
    """
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    # One NaN makes all probabilities NaN; the largest of the others is still the largest.
    draws = mx.array([sampler.cut is not None for sampler in samplers])
    has_none = mx.isnan(chosen) | (draws & mx.any(mx.isnan(logits), axis=-1))
    return mx.where(has_none, mx.array(NO_TOKEN, dtype=mx.int32), tokens.astype(mx.int32))


def _choose_alike(samplers: Sequence[Sampler], logits: mx.array) -> mx.array:
    cut = samplers[0].cut
    if cut is None:
        return mx.argmax(logits, axis=-1)
    scores = cut.scores(logits)
    keys = mx.array([sampler.draw() for sampler in samplers], dtype=mx.uint32)
    # The likeliest after adding Gumbel noise is a draw from the softmax (https://arxiv.org/abs/1611.01144, eq. 1).
    noise = mx.vmap(lambda key: mx.random.gumbel(scores.shape[1:], key=key))(keys)
    return mx.argmax(scores + noise, axis=-1)


def _cut(sampling: Sampling) -> Cut:
    return Cut(sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)


def processors(sampling: Sampling, prompt_length: int) -> list[Processor]:
    """Return what changes the logits before sampling: nothing where no parameter asks for it, since it costs per row.

    The repetition penalty looks back over a window of the prompt and the answer; OpenAI's presence and frequency
    penalties count in the whole answer and not in the prompt.
    """
    found: list[Processor] = []
    if sampling.logit_bias:
        found.append(partial(_add, Biases(sampling.logit_bias)))
    if sampling.repetition_penalty != 1:
        found.append(make_repetition_penalty(sampling.repetition_penalty, _REPETITION_WINDOW))
    if sampling.presence_penalty:
        found.append(_on_answer(make_presence_penalty, sampling.presence_penalty, prompt_length))
    if sampling.frequency_penalty:
        found.append(_on_answer(make_frequency_penalty, sampling.frequency_penalty, prompt_length))
    return found


def _add(biases: Biases, _: mx.array, logits: mx.array) -> mx.array:
    width = logits.shape[-1]
    if width not in biases.made:
        # MLX writes past the array, and ends the process, where an index is out of range.
        known = {token: value for token, value in biases if token < width}
        arrays = mx.array(list(known), dtype=mx.int32), mx.array(list(known.values()), dtype=mx.float32)
        biases.made[width] = arrays
    tokens, values = biases.made[width]
    return logits.at[:, tokens].add(values.astype(logits.dtype))


def _on_answer(make: Callable[[float, int], Processor], penalty: float, prompt_length: int) -> Processor:
    # The window is cut off here, so that of the penalty itself only has to be larger than any answer.
    penalise = make(penalty, 1 << 30)

    def processor(tokens: mx.array, logits: mx.array) -> mx.array:
        return penalise(tokens[prompt_length:], logits)

    return processor
