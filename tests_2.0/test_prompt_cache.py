"""The prompt cache: which prefixes it finds, which entries it keeps, and its limit in bytes."""

from __future__ import annotations

import mlx.core as mx
import pytest
from conftest_runner import ScriptedBackend, ScriptedBatch, request, tokens_of
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.cache import ArraysCache, BatchKVCache, KVCache

from mlxk2.runner.mlx.device import current_device
from mlxk2.runner.mlx.prefill import ModelState
from mlxk2.runner.prompt_cache import PromptCache, State
from mlxk2.runner.runner import MLXRunner

_SENTENCES = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple)
_PLENTY = 1 << 30


def trimmable(tokens: tuple[int, ...]) -> ModelState:
    """Return the state of a model with plain attention, in which each token's key is the token itself."""
    cache = KVCache()
    keys = mx.array(tokens, dtype=mx.float32).reshape(1, 1, -1, 1)
    cache.update_and_fetch(keys, keys)
    # A state from a batch has no spare room for more tokens.
    cache.keys, cache.values = cache.keys_and_values()
    return ModelState([cache])


def recurrent(tokens: tuple[int, ...]) -> ModelState:
    """Return the state of a recurrent model: one number that represents all tokens."""
    cache = ArraysCache(1)
    cache[0] = mx.array([float(sum(tokens))])
    return ModelState([cache])


def tokens_in(state: State) -> list[float]:
    """Return the tokens that a trimmable state contains."""
    assert isinstance(state, ModelState)
    keys, _ = state[0].keys_and_values()
    tokens: list[float] = keys.flatten().tolist()
    return tokens


def common_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Return the length of the common prefix."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


@given(st.lists(_SENTENCES, max_size=12), _SENTENCES)
def test_the_longest_common_prefix_of_any_entry_is_found(kept: list[tuple[int, ...]], prompt: tuple[int, ...]) -> None:
    cache = PromptCache(_PLENTY)
    for tokens in kept:
        cache.keep(tokens, trimmable(tokens))
    prefix = cache.find(prompt)
    assert prefix.length == max((common_length(tokens, prompt[:-1]) for tokens in kept), default=0)
    assert (tokens_in(prefix.state) if prefix.state else []) == list(prompt[: prefix.length])


@given(st.lists(_SENTENCES, max_size=12), _SENTENCES)
def test_a_state_that_cannot_be_trimmed_is_reused_only_whole(
    kept: list[tuple[int, ...]], prompt: tuple[int, ...]
) -> None:
    cache = PromptCache(_PLENTY)
    for tokens in kept:
        cache.keep(tokens, recurrent(tokens))
    prefix = cache.find(prompt)
    whole = [tokens for tokens in kept if common_length(tokens, prompt[:-1]) == len(tokens)]
    assert prefix.length == max(map(len, whole), default=0)
    assert prefix.shared == max((common_length(tokens, prompt[:-1]) for tokens in kept), default=0)
    if isinstance(prefix.state, ModelState):
        assert prefix.state[0][0].item() == sum(prompt[: prefix.length])
    assert len(cache) == len(set(kept))


@given(st.lists(_SENTENCES, max_size=12))
def test_a_trimmable_entry_replaces_its_prefixes(kept: list[tuple[int, ...]]) -> None:
    cache = PromptCache(_PLENTY)
    for tokens in kept:
        cache.keep(tokens, trimmable(tokens))
    longest = [one for one in set(kept) if not any(one != other and one == other[: len(one)] for other in kept)]
    assert len(cache) == len(longest)
    assert cache.nbytes == sum(8 * len(tokens) for tokens in longest)


@given(st.lists(_SENTENCES, max_size=20), st.integers(0, 80))
def test_the_limit_in_bytes_is_never_exceeded(kept: list[tuple[int, ...]], limit: int) -> None:
    cache = PromptCache(limit)
    for tokens in kept:
        cache.keep(tokens, trimmable(tokens))
        assert cache.nbytes <= limit
        if 8 * len(tokens) <= limit:
            assert cache.find((*tokens, 9)).length == len(tokens)


def test_the_least_recently_used_entry_is_evicted_first() -> None:
    cache = PromptCache(3 * 16)
    for first in (1, 2, 3):
        cache.keep((first, 0), trimmable((first, 0)))
    assert cache.find((1, 0, 5)).length == 2
    cache.keep((4, 0), trimmable((4, 0)))
    assert [cache.find((first, 0, 5)).length for first in (1, 2, 3, 4)] == [2, 0, 2, 2]


def test_a_found_state_is_a_copy() -> None:
    cache = PromptCache(_PLENTY)
    cache.keep((1, 2, 3), trimmable((1, 2, 3)))
    state = cache.find((1, 2, 9)).state
    assert isinstance(state, ModelState)
    more = mx.full((1, 1, 4, 1), 7.0)
    state[0].update_and_fetch(more, more)
    again = cache.find((1, 2, 3, 4)).state
    assert again is not None and tokens_in(again) == [1, 2, 3]


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    cache = PromptCache(_PLENTY)
    cache.keep((1, 2, 3), trimmable((1, 2, 3)))
    assert cache.find((1, 2, 3)).length == 2
    assert cache.find((1,)).length == 0


class Tiny:
    """The state of a layer with tiny arrays."""

    nbytes = 8

    def __init__(self) -> None:
        self.state = (mx.array(0), mx.array(0), None)

    def is_trimmable(self) -> bool:
        """Return False: the state can be reused only whole."""
        return False


def test_the_number_of_arrays_is_bounded_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "device_info", lambda: {"resource_limit": 499})
    limit = current_device().max_cached_arrays
    cache = PromptCache(_PLENTY, limit)
    for number in range(2_000):
        cache.keep((number,), ModelState([Tiny(), Tiny()]))
        assert cache.arrays == 4 * len(cache) <= 499 // 4
    assert [cache.find((number, 0)).shared for number in (0, 1968, 1969, 1999)] == [0, 0, 1, 1]
    cache.keep((1, 2, 3), ModelState(Tiny() for _ in range(70)))
    assert cache.find((1, 2, 3, 4)).shared == 0
    cache.clear()
    assert cache.arrays == 0


def test_the_runner_limits_the_cached_arrays() -> None:
    bounds: list[PromptCache] = []

    class Noting(ScriptedBackend):
        max_cached_arrays = 2

        def batch(self, max_sequences: int, prompts: PromptCache) -> ScriptedBatch:
            bounds.append(prompts)
            return super().batch(max_sequences, prompts)

    runner = MLXRunner(Noting(lambda _: tokens_of("a")), prompt_cache_bytes=_PLENTY)
    list(runner.stream(request()))
    for number in range(5):
        bounds[0].keep((number,), ModelState([Tiny()]))
    assert len(bounds[0]) == 1


def test_clear_empties_the_cache() -> None:
    cache = PromptCache(_PLENTY)
    cache.keep((1, 2), trimmable((1, 2)))
    cache.clear()
    assert (len(cache), cache.nbytes, cache.find((1, 2, 3)).length) == (0, 0, 0)


@pytest.mark.parametrize("heads", [1, 4])
def test_an_entry_does_not_keep_the_memory_of_its_batch(heads: int) -> None:
    batch = BatchKVCache([0] * 64)
    keys = mx.zeros((64, heads, 256, 32))
    batch.update_and_fetch(keys, keys)
    sums = ArraysCache(1)
    sums[0] = mx.zeros((64, 1 << 16))
    mx.eval(batch.state, sums.state)
    cache = PromptCache(_PLENTY)
    cache.keep((1,) * 256, ModelState([batch.extract(3), sums.extract(3)]))
    del batch, sums, keys
    before = mx.get_active_memory()
    held = cache.nbytes
    cache.clear()
    assert held <= before - mx.get_active_memory() <= held + (1 << 16)
