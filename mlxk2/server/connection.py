"""HTTP connections that end when nothing moves: a client that stops half-way holds nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Seconds without a byte, in the middle of a request or with an answer that is not read.
IDLE = 30.0


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with a limit to how long it may stand still; between requests uvicorn's own holds."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._restart()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take the next bytes; wait for more only while a request is unfinished."""
        self._restart()
        super().data_received(data)

    def on_message_complete(self) -> None:
        """The request is whole: now it is the server's turn."""
        self._stop()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to."""
        self._restart()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._stop()
        super().resume_writing()

    def _restart(self) -> None:
        self._stop()
        self._timer = self.loop.call_later(IDLE, self._give_up)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        # Not `close`, which waits until everything is read.
        self.transport.abort()
