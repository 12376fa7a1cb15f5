"""Keep the states that the model computed for earlier prompts and completions, so that no prefix is computed twice."""

from __future__ import annotations

import copy
import itertools
import operator
import sys
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

Tokens = tuple[int, ...]


class State(Protocol):
    """The state of a model after some tokens (with MLX: `prefill.ModelState`). `deepcopy` can copy it."""

    @property
    def nbytes(self) -> int:
        """The size of the state in bytes."""

    @property
    def arrays(self) -> int:
        """The number of arrays of the state."""

    @property
    def is_trimmable(self) -> bool:
        """Whether the last tokens can be removed from the state."""

    def trim(self, count: int) -> None:
        """Remove the last `count` tokens from the state."""

    def detach(self) -> None:
        """Copy the arrays if they are slices of a batch's arrays, which would keep the whole batch in memory."""


class Prefix(NamedTuple):
    """The known beginning of a prompt: the state after `length` tokens.

    The first `shared` tokens of the prompt are equal to those of an earlier one. If `shared` is larger than `length`,
    the cache has no state for that position.
    """

    state: State | None
    length: int
    shared: int


class PromptCache:
    """Keeps states by their tokens, in at most `max_bytes`; drops the least recently used states first.

    `max_arrays` limits the number of their arrays, for devices that allow only so many.
    """

    def __init__(self, max_bytes: int, max_arrays: int | None = None) -> None:
        self.nbytes = 0
        self.arrays = 0
        self._max_bytes = max_bytes
        self._max_arrays = sys.maxsize if max_arrays is None else max_arrays
        # In the order of their last use.
        self._states: dict[Tokens, State] = {}
        # Sorted: the entry with the longest common prefix is next to the place of a prompt.
        self._sorted: list[Tokens] = []

    def __len__(self) -> int:
        return len(self._states)

    def __bool__(self) -> bool:
        """Return whether the cache may keep anything."""
        return self._max_bytes > 0

    def find(self, prompt: Sequence[int]) -> Prefix:
        """Return a copy of the state after the longest known prefix of a prompt, without the prompt's last token.

        The last token is always computed, because it gives the first token of the completion.
        """
        tokens = tuple(prompt)[:-1]
        entry, shared = self._nearest(tokens)
        if shared and shared < len(entry) and not self._states[entry].is_trimmable:
            entry = next(self._prefixes(tokens), ())
        if not shared or not entry:
            return Prefix(None, 0, shared)
        self._refresh(entry)
        state, length = copy.deepcopy(self._states[entry]), min(len(entry), shared)
        if length < len(entry):
            state.trim(len(entry) - length)
        return Prefix(state, length, shared)

    def keep(self, tokens: Sequence[int], state: State) -> None:
        """Keep the state after these tokens, unless it is too large, already known, or can't be detached."""
        entry = tuple(tokens)
        if state.nbytes > self._max_bytes or state.arrays > self._max_arrays:
            return
        nearest, shared = self._nearest(entry)
        if shared == len(entry) and (nearest == entry or self._states[nearest].is_trimmable):
            self._refresh(nearest)
            return
        try:
            state.detach()
        except (MemoryError, RuntimeError):
            # Memory is short; later prompts are computed without this state.
            return
        if state.is_trimmable:
            # A longer state can be trimmed, so the states of its prefixes are not needed.
            for prefix in list(self._prefixes(entry)):
                self._drop(prefix)
        self._states[entry] = state
        insort(self._sorted, entry)
        self.nbytes += state.nbytes
        self.arrays += state.arrays
        while self.nbytes > self._max_bytes or self.arrays > self._max_arrays:
            self._drop(next(iter(self._states)))

    def clear(self) -> None:
        """Drop all states."""
        self._states.clear()
        self._sorted.clear()
        self.nbytes = self.arrays = 0

    def _nearest(self, tokens: Tokens) -> tuple[Tokens, int]:
        """Return the entry that shares the longest prefix with these tokens, and the length of that prefix."""
        place = bisect_left(self._sorted, tokens)
        neighbours = self._sorted[max(place - 1, 0) : place + 1]
        found = [(entry, _common_length(entry, tokens)) for entry in neighbours]
        return max(found, key=operator.itemgetter(1), default=((), 0))

    def _prefixes(self, tokens: Tokens) -> Iterator[Tokens]:
        """Yield the entries that are prefixes of these tokens, the longest first."""
        while place := bisect_right(self._sorted, tokens):
            entry = self._sorted[place - 1]
            shared = _common_length(entry, tokens)
            if shared == len(entry):
                yield entry
            # Entries before this one can be prefixes only of the shared tokens.
            tokens = tokens[: min(shared, len(entry) - 1)]

    def _refresh(self, entry: Tokens) -> None:
        self._states[entry] = self._states.pop(entry)

    def _drop(self, entry: Tokens) -> None:
        state = self._states.pop(entry)
        self.nbytes -= state.nbytes
        self.arrays -= state.arrays
        del self._sorted[bisect_left(self._sorted, entry)]


def _common_length(one: Tokens, other: Tokens) -> int:
    """Return the length of the common prefix of two lists of tokens."""
    return sum(itertools.takewhile(bool, map(operator.eq, one, other)))
