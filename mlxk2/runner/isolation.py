"""Which session a fault of the whole batch belongs to: each is tried alone, and the sound ones go on together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

S = TypeVar("S")


class Trial(Generic[S]):
    """The sessions of a batch that failed, in the order they came."""

    def __init__(self, sessions: Iterable[S], fault: Exception) -> None:
        self.fault = fault
        self._untried = deque(sessions)
        self._sound: list[S] = []
        self._joined: list[S] = []
        self._suspects = len(self._untried)

    @property
    def sessions(self) -> list[S]:
        """Those that are neither being tried nor gone."""
        return [*self._sound, *self._untried, *self._joined]

    def next(self) -> S | None:
        """Return the session to try now, if one is left."""
        return self._untried.popleft() if self._untried else None

    def acquit(self, session: S) -> None:
        """Let a session that has got a token alone go on with the others, when all have been tried."""
        self._sound.append(session)

    def join(self, session: S) -> None:
        """Let a session that came meanwhile wait for the others."""
        self._joined.append(session)

    def discard(self, session: S) -> None:
        """Forget a session that was cancelled."""
        for sessions in (self._sound, self._untried, self._joined):
            if session in sessions:
                sessions.remove(session)

    def unexplained(self) -> S | None:
        """Return the session to end where all are sound, the newest: else the same would happen for ever."""
        return self._sound.pop() if len(self._sound) == self._suspects else None
