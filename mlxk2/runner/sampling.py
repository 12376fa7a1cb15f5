"""How MLX chooses the next token: samplers and logits processors for one row of a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable

import mlx.core as mx
from mlx_lm.sample_utils import (
    apply_min_p,
    apply_top_k,
    apply_top_p,
    greedy_sampler,
    make_frequency_penalty,
    make_presence_penalty,
    make_repetition_penalty,
)

from mlxk2.runner.params import Sampling

# logprobs [rows, vocabulary] → tokens [rows]
Sampler = Callable[[mx.array], mx.array]
# tokens so far [n], logits [1, vocabulary] → logits [1, vocabulary]
Processor = Callable[[mx.array, mx.array], mx.array]

# A model's own phrases repeat over a few sentences; mlx-lm's 20 tokens see no further than one.
_REPETITION_WINDOW = 64


def sampler(sampling: Sampling) -> Sampler:
    """Return the sampler for these parameters; without a seed, equal parameters give the same object.

    mlx-lm samples all rows that share one sampler object in one call. With a seed the sampler holds a random state of
    its own, so a row's tokens do not depend on the rows beside it.
    """
    if sampling.greedy:
        return greedy_sampler  # type: ignore[no-any-return]
    cut = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
    if sampling.seed is None:
        return _shared_sampler(*cut)
    return _seeded_sampler(sampling.seed, *cut)


@functools.lru_cache(maxsize=64)
def _shared_sampler(temperature: float, top_p: float, top_k: int, min_p: float) -> Sampler:
    def sample(logprobs: mx.array) -> mx.array:
        return mx.random.categorical(_cut(logprobs, temperature, top_p, top_k, min_p))

    return sample


def _seeded_sampler(seed: int, temperature: float, top_p: float, top_k: int, min_p: float) -> Sampler:
    key = mx.random.key(seed % (1 << 64))

    def sample(logprobs: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        return mx.random.categorical(_cut(logprobs, temperature, top_p, top_k, min_p), key=now)

    return sample


def _cut(logprobs: mx.array, temperature: float, top_p: float, top_k: int, min_p: float) -> mx.array:
    """Drop the unlikely tokens in mlx-lm's order, then flatten by the temperature; in float32, which can't overflow."""
    logprobs = logprobs.astype(mx.float32)
    if top_p < 1:
        logprobs = apply_top_p(logprobs, top_p)
    if min_p > 0:
        logprobs = apply_min_p(logprobs, min_p)
    if 0 < top_k < logprobs.shape[-1]:
        logprobs = apply_top_k(logprobs, top_k)
    return logprobs * (1 / temperature)


def processors(sampling: Sampling, prompt_length: int) -> list[Processor]:
    """Return what changes the logits before sampling: nothing where no parameter asks for it, since it costs per row.

    The repetition penalty looks back over a window of the prompt and the answer; OpenAI's presence and frequency
    penalties count in the whole answer and not in the prompt.
    """
    found: list[Processor] = []
    if sampling.logit_bias:
        found.append(_bias(dict(sampling.logit_bias)))
    if sampling.repetition_penalty != 1:
        found.append(make_repetition_penalty(sampling.repetition_penalty, _REPETITION_WINDOW))
    if sampling.presence_penalty:
        found.append(_on_answer(make_presence_penalty, sampling.presence_penalty, prompt_length))
    if sampling.frequency_penalty:
        found.append(_on_answer(make_frequency_penalty, sampling.frequency_penalty, prompt_length))
    return found


def _bias(bias: dict[int, float]) -> Processor:
    @functools.cache
    def arrays(width: int) -> tuple[mx.array, mx.array]:
        # MLX writes past the array, and ends the process, where an index is out of range.
        known = {token: value for token, value in bias.items() if token < width}
        return mx.array(list(known), dtype=mx.int32), mx.array(list(known.values()), dtype=mx.float32)

    def add(_: mx.array, logits: mx.array) -> mx.array:
        tokens, values = arrays(logits.shape[-1])
        return logits.at[:, tokens].add(values.astype(logits.dtype))

    return add


def _on_answer(make: Callable[[float, int], Processor], penalty: float, prompt_length: int) -> Processor:
    # The window is cut off here, so that of the penalty itself only has to be larger than any answer.
    penalise = make(penalty, 1 << 30)

    def processor(tokens: mx.array, logits: mx.array) -> mx.array:
        return penalise(tokens[prompt_length:], logits)

    return processor
