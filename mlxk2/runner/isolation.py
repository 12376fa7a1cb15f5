"""Fault isolation: finding the sequence that made a batch fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from mlxk2.runner.sequences import Sequence


class Isolation:
    """The sequences of a batch that failed, in the order of their arrival.

    Each is generated alone. One that gets a token is cleared, and waits until all others have been tested; then all
    that are left continue together, with those that were added and are not tested.
    """

    def __init__(self, sequences: Iterable[Sequence], fault: Exception) -> None:
        self.fault = fault
        self._untested = deque(sequences)
        self._cleared: list[Sequence] = []
        self._arrived: list[Sequence] = []
        self._count = len(self._untested)

    @property
    def waiting(self) -> list[Sequence]:
        """All sequences except the one that is being tested."""
        return [*self._cleared, *self._untested, *self._arrived]

    def next(self) -> Sequence | None:
        """Return the sequence to test now, if one is left."""
        return self._untested.popleft() if self._untested else None

    def clear(self, sequence: Sequence) -> None:
        """Note that a sequence has got a token alone."""
        self._cleared.append(sequence)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence that arrived after the fault wait for the others; it is not tested."""
        self._arrived.append(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Drop a sequence that was cancelled."""
        for sequences in (self._cleared, self._untested, self._arrived):
            if sequence in sequences:
                sequences.remove(sequence)

    def pop_unexplained(self) -> Sequence | None:
        """Take out the newest sequence if all were cleared: all of them together would fail again and again."""
        return self._cleared.pop() if self._cleared and len(self._cleared) == self._count else None
