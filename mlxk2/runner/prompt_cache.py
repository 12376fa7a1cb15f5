"""What the model computed for earlier prompts and answers, kept so that no prefix is computed twice."""

from __future__ import annotations

import copy
import itertools
import operator
import sys
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

# What mlx-lm keeps of the tokens so far: one cache for each layer.
State = list[Any]
Tokens = tuple[int, ...]


class Prefix(NamedTuple):
    """The beginning of a prompt: the state after `length` tokens, which need not be computed.

    `shared` is how many tokens it has in common with an earlier one, at which no state could be had if it is more.
    """

    state: State | None
    length: int
    shared: int


class PromptCache:
    """States by the tokens that led to them, in at most `limit` bytes; the least recently used go first.

    They are in at most `max_arrays` arrays, where a number is given: a device may have room for no more.
    """

    def __init__(self, limit: int, max_arrays: int | None = None) -> None:
        self.nbytes = 0
        self.arrays = 0
        self._limit = limit
        self._max_arrays = sys.maxsize if max_arrays is None else max_arrays
        # The order of the dictionary is that of the last use.
        self._states: dict[Tokens, State] = {}
        # In this order, the entry that shares most with a prompt stands next to it.
        self._sorted: list[Tokens] = []

    def __len__(self) -> int:
        return len(self._states)

    def __bool__(self) -> bool:
        """Whether anything may be kept."""
        return self._limit > 0

    def find(self, prompt: Sequence[int]) -> Prefix:
        """Return the longest prefix of a prompt that is at hand, without its last token, which is always computed."""
        wanted = tuple(prompt)[:-1]
        entry, shared = self._nearest(wanted)
        if shared and shared < len(entry) and not can_trim_prompt_cache(self._states[entry]):
            entry = next(self._prefixes(wanted), ())
        if not shared or not entry:
            return Prefix(None, 0, shared)
        self._refresh(entry)
        state, length = copy.deepcopy(self._states[entry]), min(len(entry), shared)
        if length < len(entry):
            trim_prompt_cache(state, len(entry) - length)
        return Prefix(state, length, shared)

    def keep(self, tokens: Sequence[int], state: State) -> None:
        """Keep the state after these tokens, if it fits and there is memory for a copy."""
        entry, size, arrays = tuple(tokens), _size(state), _count(state)
        if size > self._limit or arrays > self._max_arrays or self._covers(entry):
            return
        try:
            _own(state)
        except (MemoryError, RuntimeError):
            # The answer does without.
            return
        if can_trim_prompt_cache(state):
            # What they are good for, the longer one is too.
            for prefix in list(self._prefixes(entry)):
                self._drop(prefix)
        self._states[entry] = state
        insort(self._sorted, entry)
        self.nbytes += size
        self.arrays += arrays
        while self.nbytes > self._limit or self.arrays > self._max_arrays:
            self._drop(next(iter(self._states)))

    def clear(self) -> None:
        """Forget everything."""
        self._states.clear()
        self._sorted.clear()
        self.nbytes = self.arrays = 0

    def _covers(self, tokens: Tokens) -> bool:
        """Whether these tokens need no state of their own; the one that serves them is refreshed."""
        entry, shared = self._nearest(tokens)
        if shared < len(tokens) or (entry != tokens and not can_trim_prompt_cache(self._states[entry])):
            return False
        self._refresh(entry)
        return True

    def _nearest(self, tokens: Tokens) -> tuple[Tokens, int]:
        """Return the entry that shares the longest prefix with these tokens, and its length."""
        place = bisect_left(self._sorted, tokens)
        neighbours = self._sorted[max(place - 1, 0) : place + 1]
        found = [(entry, _common(entry, tokens)) for entry in neighbours]
        return max(found, key=operator.itemgetter(1), default=((), 0))

    def _prefixes(self, tokens: Tokens) -> Iterator[Tokens]:
        """Yield the entries that these tokens begin with, the longest first."""
        while place := bisect_right(self._sorted, tokens):
            entry = self._sorted[place - 1]
            shared = _common(entry, tokens)
            if shared == len(entry):
                yield entry
            # An entry further down is a prefix only of what they share.
            tokens = tokens[: min(shared, len(entry) - 1)]

    def _refresh(self, entry: Tokens) -> None:
        self._states[entry] = self._states.pop(entry)

    def _drop(self, entry: Tokens) -> None:
        state = self._states.pop(entry)
        self.nbytes -= _size(state)
        self.arrays -= _count(state)
        del self._sorted[bisect_left(self._sorted, entry)]


def _common(one: Tokens, other: Tokens) -> int:
    """Return how many tokens two sequences share at their beginning."""
    return sum(itertools.takewhile(bool, map(operator.eq, one, other)))


def _size(state: State) -> int:
    return sum(layer.nbytes for layer in state)


def _count(state: State) -> int:
    return sum(isinstance(leaf, mx.array) for _, leaf in tree_flatten([layer.state for layer in state]))


def _own(state: State) -> None:
    """Give the state arrays of its own: as slices of a batch's they would keep the whole of it in memory."""
    for layer in state:
        layer.state = tree_map(lambda leaf: mx.contiguous(leaf) if isinstance(leaf, mx.array) else leaf, layer.state)
    mx.eval([layer.state for layer in state])
