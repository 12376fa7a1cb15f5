"""HTTP connections that end when nothing moves: a client that stops half-way holds nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Countdown:
    """Calls a function after some seconds, unless it is stopped or started again before."""

    def __init__(self, seconds: float, on_end: Callable[[], None]) -> None:
        self._seconds = seconds
        self._on_end = on_end
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has been started and not been stopped."""
        return self._timer is not None

    def start(self) -> None:
        """Begin to count, from the start if it is counting already."""
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._on_end)

    def stop(self) -> None:
        """Do not count any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with a limit to how long it may stand still; between requests uvicorn's own holds.

    `patience` is how many seconds may go by without a byte of a request that is unfinished, or with an answer that
    the client does not read.
    """

    def __init__(self, *arguments: Any, patience: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._arriving = Countdown(patience, self._give_up)
        self._leaving = Countdown(patience, self._give_up)

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._arriving.start()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._arriving.stop()
        self._leaving.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take the next bytes; only those of an unfinished request are waited for."""
        if self._arriving.is_running:
            self._arriving.start()
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins to come."""
        self._arriving.start()
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """The request is whole: now it is the server's turn."""
        self._arriving.stop()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to."""
        self._leaving.start()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._leaving.stop()
        super().resume_writing()

    def _give_up(self) -> None:
        # Not `close`, which waits until everything is read.
        self.transport.abort()
