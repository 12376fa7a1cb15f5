"""What the model computed for earlier prompts and completions, retained so that no prefix is computed twice."""

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
    """What a model computed for a number of tokens; `prefill.ModelState` on MLX. It can be copied with `deepcopy`."""

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""

    @property
    def arrays(self) -> int:
        """The number of its arrays."""

    @property
    def is_trimmable(self) -> bool:
        """Whether the last tokens can be taken away from it."""

    def trim(self, count: int) -> None:
        """Take away the last `count` tokens."""

    def detach(self) -> None:
        """Give it arrays of its own; as slices of a batch's arrays they would hold the whole batch in memory."""


class Prefix(NamedTuple):
    """The beginning of a prompt that need not be computed: the state after `length` tokens.

    `shared` is how many tokens the prompt has in common with an earlier one. If that is more than `length`, no state
    was at hand for that point.
    """

    state: State | None
    length: int
    shared: int


class PromptCache:
    """States by the tokens that led to them, in at most `max_bytes`; the least recently used are dropped first.

    With `max_arrays` they have at most so many arrays: a device may have room for no more.
    """

    def __init__(self, max_bytes: int, max_arrays: int | None = None) -> None:
        self.nbytes = 0
        self.arrays = 0
        self._max_bytes = max_bytes
        self._max_arrays = sys.maxsize if max_arrays is None else max_arrays
        # The order of the dictionary is that of the last use.
        self._states: dict[Tokens, State] = {}
        # In this order, the entry that shares most with a prompt stands next to it.
        self._sorted: list[Tokens] = []

    def __len__(self) -> int:
        return len(self._states)

    def __bool__(self) -> bool:
        """Whether anything may be retained."""
        return self._max_bytes > 0

    def find(self, prompt: Sequence[int]) -> Prefix:
        """Return a copy of the state after the longest known prefix of a prompt; the last token is always computed."""
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
        """Retain the state after these tokens, if it fits, adds something, and there is memory to detach it."""
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
            # A later prompt is computed without it.
            return
        if state.is_trimmable:
            # The longer state serves all that its prefixes serve.
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
        """Yield the entries that these tokens begin with, the longest first."""
        while place := bisect_right(self._sorted, tokens):
            entry = self._sorted[place - 1]
            shared = _common_length(entry, tokens)
            if shared == len(entry):
                yield entry
            # An entry further down is a prefix only of what they share.
            tokens = tokens[: min(shared, len(entry) - 1)]

    def _refresh(self, entry: Tokens) -> None:
        self._states[entry] = self._states.pop(entry)

    def _drop(self, entry: Tokens) -> None:
        state = self._states.pop(entry)
        self.nbytes -= state.nbytes
        self.arrays -= state.arrays
        del self._sorted[bisect_left(self._sorted, entry)]


def _common_length(one: Tokens, other: Tokens) -> int:
    """Return how many tokens two sequences share at their beginning."""
    return sum(itertools.takewhile(bool, map(operator.eq, one, other)))
