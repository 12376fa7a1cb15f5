"""HTTP connections: handle one request at a time, in bounded memory and time; ignore offers to upgrade."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mlxk2.formatting import reason_of
from mlxk2.server.http.refusals import Refusal, RenderRefusal

# More than any client sends. The parser has no limit of its own, and needs more and more time for a long line.
MAX_HEAD_BYTES = 64 << 10
MAX_FIELDS = 256  # Each field takes twenty times the memory of a short line.
# Requests that a client sends in advance wait as bytes. Read them up to this limit, because a disconnect is noticed
# only by reading.
MAX_BYTES_AHEAD = 256 << 10
# A client that reads or sends at least so much within `stall_seconds` is not stalled.
MIN_READ_BYTES = 64 << 10
MIN_SENT_BYTES = 64 << 10
# Parse at most so many bytes of a head or of a chunked body at once, so that they contain only a few requests.
_HEAD_BYTES_AT_ONCE = 4 << 10
_CHUNKED_BYTES_AT_ONCE = 512
_END_OF_HEAD = b"\r\n\r\n"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Countdown:
    """Calls a function after some seconds, unless it is stopped or restarted before."""

    def __init__(self, seconds: float, on_end: Callable[[], None]) -> None:
        self._seconds = seconds
        self._on_end = on_end
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        """Whether the countdown was started and not stopped."""
        return self._timer is not None

    def start(self) -> None:
        """Start or restart."""
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._on_end)

    def stop(self) -> None:
        """Stop without calling the function."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Reading(FlowControl):
    """uvicorn's flow control, changed not to resume reading while `is_full`."""

    is_full = False

    def resume_reading(self) -> None:
        if not self.is_full:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """uvicorn's connection, changed to parse a request only after the response to the previous one.

    Bytes that a client sends in advance wait. `stall_seconds` is the most time for a head, and the most time in which a
    body or a response may advance by less than 64 KB. Between requests, uvicorn's own limit applies. `render` renders
    the refusal of bytes that are not HTTP.
    """

    flow: _Reading

    def __init__(self, *arguments: Any, stall_seconds: float, render: RenderRefusal, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._render = render
        self._request_countdown = Countdown(stall_seconds, self._check_request)
        self._response_countdown = Countdown(stall_seconds, self._check_response)
        self._started: RequestResponseCycle | None = None
        self._waiting = bytearray()
        self._refusal: tuple[int, str] | None = None
        self._is_head = True
        self._is_body = False
        self._is_passed_on = True
        self._has_moved = False
        self._head_bytes = 0
        self._body_bytes_left = 0
        self._body_bytes_since_check = 0
        self._unread_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self.flow = _Reading(transport)
        self._request_countdown.start()

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the memory of the connection, and wake the request that is being handled, even if others wait."""
        self._request_countdown.stop()
        self._response_countdown.stop()
        if cycle := self._responding:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)
        # Reference cycles can keep the connection alive for minutes, so free its memory here.
        self._waiting.clear()
        self.pipeline.clear()
        self.headers, self.url = [], b""

    def data_received(self, data: bytes) -> None:
        """Add the next bytes, and parse those that may be parsed now."""
        self._waiting += data
        self._parse_waiting()

    def _parse_waiting(self) -> None:
        """Parse the waiting bytes, up to the end of a request that has no response yet."""
        if self._waiting:
            self._unset_keepalive_if_required()
        begin = 0
        while begin < len(self._waiting):
            cycle = self._responding
            is_next = cycle is not None and not (cycle is self.cycle and cycle.more_body)
            if is_next or self._refusal or self.transport.is_closing():
                # These bytes belong to the next request, which waits for the response to this one.
                break
            # Each step contains the end of at most one request, or of a few small ones.
            if self._body_bytes_left:
                end = begin + self._body_bytes_left
            elif self._is_body:
                end = begin + _CHUNKED_BYTES_AT_ONCE
            else:
                found = self._waiting.find(_END_OF_HEAD, begin, begin + _HEAD_BYTES_AT_ONCE)
                end = begin + _HEAD_BYTES_AT_ONCE if found < 0 else found + len(_END_OF_HEAD)
            data = self._waiting[begin:end]
            self._has_moved = False
            begin += self._parse(data)
            # Count bytes that are not part of a body: heads, trailers, chunk sizes and line ends.
            self._head_bytes = 0 if self._has_moved else self._head_bytes + len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, "The head of the request is larger than 64 KB.")
        del self._waiting[:begin]
        was_full, self.flow.is_full = self.flow.is_full, len(self._waiting) > MAX_BYTES_AHEAD
        if self.flow.is_full:
            self.flow.pause_reading()
        elif self._waiting or self.pipeline or was_full:
            self.flow.resume_reading()
        if not (self._responding or self._request_countdown.is_running or self.timeout_keep_alive_task):
            # After an unexpected line end, uvicorn does not limit the time until the next request.
            self._request_countdown.start()

    def _parse(self, data: bytes | bytearray) -> int:
        """Parse some bytes and return how many were used; after an offer to upgrade, only those before the body."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade()
            used: int = upgrade.args[0]
            return used
        except httptools.HttpParserError as error:
            message = f"Invalid HTTP request received: {reason_of(error)}."
            self.logger.warning(message)
            self._refuse(400, message)
        return len(data)

    def _ignore_upgrade(self) -> None:
        """Parse the head again without its offer of another protocol (RFC 9110, 7.8), where httptools stopped."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._refuse(400, "CONNECT is for proxies; this server is not one.")
            return
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % field for field in self.headers if field[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn does for its own parser: allow later bytes, so that the response to this request is sent first.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parse(b"\r\n".join([*lines, b"", b""]))

    def on_message_begin(self) -> None:
        """Begin a request, and limit the time for its head."""
        self._request_countdown.start()
        self._is_head = self._has_moved = self._is_passed_on = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; ignore headers after the body."""
        if not self._is_head or not self._is_passed_on:
            return
        if len(self.headers) < MAX_FIELDS:
            super().on_header(name, value)
        else:
            self._is_passed_on = False
            self._refuse(431, f"The head of the request has more than {MAX_FIELDS} fields.")

    def on_headers_complete(self) -> None:
        """Pass the complete head on, and limit the time for the body."""
        if self.parser.should_upgrade():
            self._is_passed_on = False
        if not self._is_passed_on:
            return
        self._is_head, self._is_body, self._has_moved = False, True, True
        self._body_bytes_since_check = 0
        self._body_bytes_left = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        self._request_countdown.start()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass some bytes of the body on."""
        if self._is_passed_on:
            self._has_moved = True
            self._body_bytes_since_check += len(body)
            self._body_bytes_left = max(0, self._body_bytes_left - len(body))
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Pass the end of the request on; the time until the response has no limit here."""
        if self._is_passed_on:
            self._is_body, self._body_bytes_left = False, 0
            self._request_countdown.stop()
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Continue with the bytes after the request."""
        super().on_response_complete()
        if self._refusal and not self._responding:
            self._refuse(*self._refusal)
        self._parse_waiting()

    def pause_writing(self) -> None:
        """Begin to check a client that reads more slowly than the server writes."""
        self._unread_bytes = self.transport.get_write_buffer_size()
        self._response_countdown.start()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Stop checking the client, because it reads again."""
        self._response_countdown.stop()
        super().resume_writing()

    def _refuse(self, status: int, message: str) -> None:
        """Refuse bytes that can't be parsed, and close the connection, because the next request can't be found."""
        if self.transport.is_closing():
            return
        if cycle := self._responding:
            if self._is_head or cycle is not self.cycle:
                # Send the response to the previous request first.
                self._refusal = status, message
                return
            if cycle.response_started:
                self._abort()
                return
        path = b""
        with suppress(httptools.HttpParserInvalidURLError):
            # The URL can be incomplete and have no path.
            path = httptools.parse_url(self.url or b"").path or b""
        refusal = Refusal(message, status, headers={"Connection": "close"})
        response = self._render(unquote(path.decode("latin-1")), refusal)
        lines = [b": ".join(header) for header in response.raw_headers]
        self.transport.write(b"\r\n".join([b"HTTP/1.1 %d Refused" % status, *lines, b"", bytes(response.body)]))
        self.transport.close()

    @property
    def _responding(self) -> RequestResponseCycle | None:
        """The request whose response is not complete, or None; later requests wait for it."""
        return None if self._started is None or self._started.response_complete else self._started

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._started = cycle
        if cycle.scope["http_version"] != "1.1":
            cycle.keep_alive = cycle.waiting_for_100_continue = False
            app = partial(_without_chunks, app, cycle)
        super()._start_asgi_task(cycle, app)

    def _check_request(self) -> None:
        """Close the connection, unless the rest of its request comes fast enough or is allowed to come later."""
        # A client may wait for a response before it sends the rest of its next request.
        may_wait = self._responding and (self._is_head or self._responding is not self.cycle)
        moves = self._is_body and (self._body_bytes_since_check >= MIN_SENT_BYTES or self.flow.read_paused)
        if may_wait or moves:
            self._body_bytes_since_check = 0
            self._request_countdown.start()
        else:
            self._abort()

    def _check_response(self) -> None:
        """Close the connection, unless the client reads the response fast enough."""
        unread = self.transport.get_write_buffer_size()
        if self._unread_bytes - unread < MIN_READ_BYTES:
            self._abort()
        else:
            self._unread_bytes = unread
            self._response_countdown.start()

    def _abort(self) -> None:
        # `close` would wait until the client has read all data.
        self.transport.abort()


async def _without_chunks(app: Any, cycle: RequestResponseCycle, scope: Any, receive: Receive, send: Send) -> None:
    """Respond to an HTTP/1.0 request, which supports no chunks: a body without a length ends with the connection."""
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
