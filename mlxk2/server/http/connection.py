"""HTTP connections: one request of a client at a time, in bounded memory and time; an offered upgrade is ignored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mlxk2.server.openai import errors

# More than any client sends; the parser has no limit of its own, and gathers a long line ever more slowly.
MOST_HEAD_BYTES = 64 << 10
# Each field takes twenty times the bytes of a short line.
MAX_FIELDS = 256
# Requests that are sent ahead wait as bytes; until then the connection is read, since only so its end is noticed.
MAX_BYTES_AHEAD = 256 << 10
# A client that reads or sends this much in time is not stalled.
LEAST_READ_BYTES = 64 << 10
LEAST_SENT_BYTES = 64 << 10
# A part of a head or of a chunked body that is parsed at once: it holds few requests, however small they are.
_HEAD_PART = 4 << 10
_CHUNKED_PART = 512
_END_OF_HEAD = b"\r\n\r\n"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


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


class _Reading(FlowControl):
    """uvicorn's flow control, which does not read on while `is_full`."""

    is_full = False

    def resume_reading(self) -> None:
        if not self.is_full:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """uvicorn's connection, which parses a request only when the one before is answered.

    What a client sends ahead waits as bytes. `patience` is how many seconds a head may take, and a body or an answer
    that moves by less than 64 KB; between requests uvicorn's own limit holds. Bytes that are not HTTP are refused with
    OpenAI's error body.
    """

    flow: _Reading

    def __init__(self, *arguments: Any, patience: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._arriving = Countdown(patience, self._is_late)
        self._leaving = Countdown(patience, self._is_unread)
        self._started: RequestResponseCycle | None = None
        self._held = bytearray()
        self._refusal: tuple[int, str] | None = None
        self._is_head = True
        self._is_body = False
        self._is_passed_on = True
        self._moves = False
        self._between = 0
        self._body_left = 0
        self._come = 0
        self._unread = 0

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self.flow = _Reading(transport)
        self._arriving.start()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection, and wake the request that is being answered, also where others wait behind it."""
        self._arriving.stop()
        self._leaving.stop()
        if cycle := self._answering:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)
        # The connection is part of reference cycles, which may live for minutes; what takes memory must not.
        self._held.clear()
        self.pipeline.clear()
        self.headers, self.url = [], b""

    def data_received(self, data: bytes) -> None:
        """Take the next bytes, and parse them as far as it is their turn."""
        self._held += data
        self._read_on()

    def _read_on(self) -> None:
        """Parse what has come, up to the end of a request that has no answer yet."""
        if self._held:
            self._unset_keepalive_if_required()
        begin = 0
        while begin < len(self._held) and self._takes_more:
            part = self._held[begin : self._end_of_part(begin)]
            self._moves = False
            begin += self._parse(part)
            # What is neither a beginning nor body: a head, trailers, the sizes of chunks, line ends.
            self._between = 0 if self._moves else self._between + len(part)
            if self._between > MOST_HEAD_BYTES:
                self._refuse(431, "The head of the request is larger than 64 KB.")
        del self._held[:begin]
        was_full, self.flow.is_full = self.flow.is_full, len(self._held) > MAX_BYTES_AHEAD
        if self.flow.is_full:
            self.flow.pause_reading()
        elif self._held or self.pipeline or was_full:
            self.flow.resume_reading()
        if not (self._answering or self._arriving.is_running or self.timeout_keep_alive_task):
            # After a stray line end uvicorn does not wait for the next request any more.
            self._arriving.start()

    @property
    def _takes_more(self) -> bool:
        """Whether the next bytes may be parsed: they are still part of the request that is being answered, or it is."""
        if self._refusal or self.transport.is_closing():
            return False
        cycle = self._answering
        return cycle is None or (cycle is self.cycle and cycle.more_body)

    def _end_of_part(self, begin: int) -> int:
        """Return where a part of the bytes ends that holds the end of one request at most, or of a few small ones."""
        if self._body_left:
            return begin + self._body_left
        if self._is_body:
            return begin + _CHUNKED_PART
        end = self._held.find(_END_OF_HEAD, begin, begin + _HEAD_PART)
        return begin + _HEAD_PART if end < 0 else end + len(_END_OF_HEAD)

    def _parse(self, part: bytes | bytearray) -> int:
        """Parse a part; return how many of its bytes were taken: after an offer to upgrade, those up to the body."""
        try:
            self.parser.feed_data(part)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade()
            taken: int = upgrade.args[0]
            return taken
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self._refuse(400, message)
        return len(part)

    def _ignore_upgrade(self) -> None:
        """Parse the head again without its offer of another protocol (RFC 9110, 7.8), after which httptools stops."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._refuse(400, "CONNECT is for proxies; this server is not one.")
            return
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % field for field in self.headers if field[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn does for its own: the answer to a request may go out before what follows it is refused.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parse(b"\r\n".join([*lines, b"", b""]))

    def on_message_begin(self) -> None:
        """Begin a request; its head must come in time."""
        self._arriving.start()
        self._is_head = self._moves = self._is_passed_on = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those that come after the body are left out."""
        if not self._is_head or not self._is_passed_on:
            return
        if len(self.headers) < MAX_FIELDS:
            super().on_header(name, value)
        else:
            self._is_passed_on = False
            self._refuse(431, f"The head of the request has more than {MAX_FIELDS} fields.")

    def on_headers_complete(self) -> None:
        """Take the head of a request as whole; its body must go on coming."""
        if self.parser.should_upgrade():
            self._is_passed_on = False
        if not self._is_passed_on:
            return
        self._is_head, self._is_body, self._moves = False, True, True
        self._come = 0
        self._body_left = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        self._arriving.start()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        if self._is_passed_on:
            self._moves = True
            self._come += len(body)
            self._body_left = max(0, self._body_left - len(body))
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the request as whole: now it is the server's turn."""
        if self._is_passed_on:
            self._is_body, self._body_left = False, 0
            self._arriving.stop()
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Turn to what came after the request that is answered."""
        super().on_response_complete()
        if self._refusal and not self._answering:
            self._refuse(*self._refusal)
        self._read_on()

    def pause_writing(self) -> None:
        """Begin to watch a client that does not read as fast as it is written to."""
        self._unread = self.transport.get_write_buffer_size()
        self._leaving.start()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Stop watching the client: it reads again."""
        self._leaving.stop()
        super().resume_writing()

    def _refuse(self, status: int, message: str) -> None:
        """Refuse what can't be read, and end the connection: where the next request begins is unknown."""
        if self.transport.is_closing():
            return
        if cycle := self._answering:
            if self._is_head or cycle is not self.cycle:
                # First comes the answer to the request before.
                self._refusal = status, message
                return
            if cycle.response_started:
                self._give_up()
                return
        answer = errors.refusal(message, status, headers={"Connection": "close"})
        lines = [b": ".join(header) for header in answer.raw_headers]
        self.transport.write(b"\r\n".join([b"HTTP/1.1 %d Refused" % status, *lines, b"", bytes(answer.body)]))
        self.transport.close()

    @property
    def _answering(self) -> RequestResponseCycle | None:
        """The request that is being answered, if there is one; what came after it waits."""
        return None if self._started is None or self._started.response_complete else self._started

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._started = cycle
        if cycle.scope["http_version"] != "1.1":
            cycle.keep_alive = cycle.waiting_for_100_continue = False
            app = partial(_without_chunks, app, cycle)
        super()._start_asgi_task(cycle, app)

    def _is_late(self) -> None:
        """End the connection, unless the rest of its request comes fast enough or need not come yet."""
        # The client may wait for an answer before it sends the rest of its next request.
        waits = self._answering and (self._is_head or self._answering is not self.cycle)
        comes = self._is_body and (self._come >= LEAST_SENT_BYTES or self.flow.read_paused)
        if waits or comes:
            self._come = 0
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


async def _without_chunks(app: Any, cycle: RequestResponseCycle, scope: Any, receive: Receive, send: Send) -> None:
    """Answer a request of HTTP/1.0, which knows no chunks: a body without a length ends with the connection."""
    has_length = False

    async def send_unchunked(message: Message) -> None:
        nonlocal has_length
        if message["type"] == "http.response.start":
            has_length = any(name.lower() == b"content-length" for name, _ in message["headers"])
            cycle.chunked_encoding = None if has_length else False
        elif not has_length:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    await app(scope, receive, send_unchunked)
