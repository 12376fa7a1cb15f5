"""HTTP connections that end when nothing moves: a client that stops half-way holds nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mlxk2.server import faults

# More than any client sends; the parser has no limit of its own, and gathers a long line ever more slowly.
MOST_HEAD_BYTES = 64 << 10
# Of requests that are sent ahead; until then the connection is read, since only so its end is noticed.
MOST_BYTES_AHEAD = 1 << 20
# A client that reads this much in time still reads.
LEAST_READ_BYTES = 64 << 10


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
        self._arriving = Countdown(patience, self._stands_still)
        self._leaving = Countdown(patience, self._is_unread)
        self._started: RequestResponseCycle | None = None
        self._is_head = True
        self._moves = False
        self._between = 0
        self._ahead = 0
        self._unread = 0

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._arriving.start()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection; who answers is told, also where uvicorn looks at a request that was sent ahead."""
        self._arriving.stop()
        self._leaving.stop()
        if cycle := self._answering:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take the next bytes; only those of an unfinished request are waited for, of its head all together."""
        if self._arriving.is_running and not self._is_head:
            self._arriving.start()
        self._moves = False
        super().data_received(data)
        # What is neither a beginning nor body: a head, trailers, the sizes of chunks, line ends.
        self._between = 0 if self._moves else self._between + len(data)
        if self._between > MOST_HEAD_BYTES:
            self._refuse(431, "The head of the request is larger than 64 KB.")
        self._ahead = self._ahead + len(data) if self.pipeline else 0
        if 0 < self._ahead <= MOST_BYTES_AHEAD:
            self.flow.resume_reading()
        if not (self._answering or self._arriving.is_running or self.timeout_keep_alive_task):
            # After a stray line end uvicorn does not wait for the next request any more.
            self._arriving.start()

    def on_message_begin(self) -> None:
        """A request begins to come."""
        self._arriving.start()
        self._is_head = self._moves = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those that come after the body are left out."""
        if self._is_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head of a request is whole."""
        self._is_head, self._moves = False, True
        self._arriving.start()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body has come."""
        self._moves = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole: now it is the server's turn."""
        self._arriving.stop()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to."""
        self._unread = self.transport.get_write_buffer_size()
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

    @property
    def _answering(self) -> RequestResponseCycle | None:
        """The request that is being answered, if there is one; what came after it waits."""
        return None if self._started is None or self._started.response_complete else self._started

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._started = cycle
        super()._start_asgi_task(cycle, app)

    def _stands_still(self) -> None:
        if self._answering and (self._is_head or self._answering is not self.cycle):
            # The client may wait for that answer before it sends the rest of its next request.
            self._arriving.start()
        else:
            self._give_up()

    def _is_unread(self) -> None:
        unread = self.transport.get_write_buffer_size()
        if self._unread - unread < LEAST_READ_BYTES:
            self._give_up()
        else:
            self._unread = unread
            self._leaving.start()

    def _give_up(self) -> None:
        # Not `close`, which waits until everything is read.
        self.transport.abort()
