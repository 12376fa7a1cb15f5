"""HTTP connections that end when nothing moves: a client that stops half-way holds nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlxk2.server import faults

# More than any client sends; the parser has no limit of its own, and gathers a long line ever more slowly.
MOST_HEAD_BYTES = 64 << 10


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
    the client does not read. What is no HTTP is refused in OpenAI's words too.
    """

    def __init__(self, *arguments: Any, patience: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._arriving = Countdown(patience, self._give_up)
        self._leaving = Countdown(patience, self._give_up)
        self._is_head = True
        self._begins = False
        self._head = 0

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
        """Take the next bytes; only those of an unfinished request are waited for, of its head all together."""
        if self._arriving.is_running and not self._is_head:
            self._arriving.start()
        self._begins = False
        super().data_received(data)
        if self._is_head and not self._begins:
            self._head += len(data)
        if self._head > MOST_HEAD_BYTES:
            self._refuse(431, "The head of the request is larger than 64 KB.")

    def on_message_begin(self) -> None:
        """A request begins to come."""
        self._arriving.start()
        self._is_head = self._begins = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head of a request is whole."""
        self._is_head, self._head = False, 0
        self._arriving.start()
        super().on_headers_complete()

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

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, and end the connection: nobody knows where the next request would begin."""
        self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        answer = faults.refusal(message, status, headers={"Connection": "close"})
        lines = [b": ".join(header) for header in answer.raw_headers]
        self.transport.write(b"\r\n".join([b"HTTP/1.1 %d Refused" % status, *lines, b"", bytes(answer.body)]))
        self.transport.close()

    def _give_up(self) -> None:
        # Not `close`, which waits until everything is read.
        self.transport.abort()
