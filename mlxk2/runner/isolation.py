"""Fault isolation: find the sequence that made a batch fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from mlxk2.runner.sequences import Sequence


class Isolation:
    """The sequences of a failed batch, in the order of their arrival.

    Each sequence is tested: it is generated alone. If it gets a token, it is cleared, and waits until all others are
    tested. Then the remaining sequences continue together with the sequences that were added without a test.
    """

    def __init__(self, sequences: Iterable[Sequence], error: Exception) -> None:
        self.error = error
        self._untested = deque(sequences)
        self._cleared: list[Sequence] = []
        self._arrived: list[Sequence] = []
        self._count = len(self._untested)

    @property
    def waiting(self) -> list[Sequence]:
        """All sequences except the one that is being tested."""
        return [*self._cleared, *self._untested, *self._arrived]

    def next(self) -> Sequence | None:
        """Return the sequence to test next, or None if all are tested."""
        return self._untested.popleft() if self._untested else None

    def clear(self, sequence: Sequence) -> None:
        """Record that a sequence got a token when it was generated alone."""
        self._cleared.append(sequence)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence that arrived after the error wait for the others; it needs no test."""
        self._arrived.append(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Drop a sequence that was cancelled."""
        for sequences in (self._cleared, self._untested, self._arrived):
            if sequence in sequences:
                sequences.remove(sequence)

    def pop_unexplained(self) -> Sequence | None:
        """If all sequences were cleared, remove and return the newest one; otherwise the batch would fail forever."""
        return self._cleared.pop() if self._cleared and len(self._cleared) == self._count else None
