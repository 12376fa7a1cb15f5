"""Receive and unpack the bodies of requests, within the limits of one body and of all bodies together."""

from __future__ import annotations

import asyncio
import time
import zlib

from starlette.types import Message, Receive

from mlxk2.server.http.refusals import MAX_BODY_BYTES, Refusal, body_too_large, busy

MAX_HELD_BYTES = 256 << 20  # Of all bodies together, without the first FREE_BYTES of each.
# A body up to this size is never refused because of other bodies, so that large bodies can't block small requests.
FREE_BYTES = 64 << 10
# A JSON value takes a hundred times the memory of its text, and parsing it delays other requests.
MAX_VALUES = 1 << 20
_VALUE_MARKS = b",[{"
CODINGS = ("gzip", "deflate")
_UNPACKED_BYTES = 1 << 20  # Unpack at most so many bytes, then let other requests continue.
_MAX_MEMBERS = 64  # A gzip file can have several members, and each one takes additional time.
_STALL_SECONDS = 1.0  # A body that grows by less than FREE_BYTES in this time is stalled.


class Budget:
    """The memory for the bodies of all requests; when it is full, a stalled body is refused to make room."""

    def __init__(self) -> None:
        self._held: dict[Body, int] = {}
        self._total = 0

    def hold(self, body: Body) -> None:
        """Count the received bytes of a body; raise Refusal if the memory is full."""
        size = max(0, body.size - FREE_BYTES)
        self._total += size - self._held.get(body, 0)
        self._held[body] = size
        while self._total > MAX_HELD_BYTES:
            stalled = [other for other in self._held if other is not body and other.is_stalled]
            if not stalled:
                raise busy("The server holds too many large requests. Try again in a moment.")
            slowest = min(stalled, key=lambda other: other.moved_at)
            self.release(slowest)
            slowest.refuse(busy("The body came too slowly while other requests needed the memory."))

    def release(self, body: Body) -> None:
        """Stop counting a body."""
        self._total -= self._held.pop(body, 0)


class Body:
    """The body of one request: an ASGI `receive` that unpacks it and checks the limits. Call `close` at the end."""

    def __init__(self, receive: Receive, coding: str, budget: Budget) -> None:
        self.size = 0
        self.moved_at = time.monotonic()
        self._receive = receive
        self._unpacker = _Unpacker(coding) if coding else None
        self._budget = budget
        self._packed_size = 0
        self._values = 0
        self._size_at_move = 0
        self._is_whole = False
        self._has_more = True
        self._waiting_task: asyncio.Task[object] | None = None
        self._refusal: Refusal | None = None

    @property
    def is_stalled(self) -> bool:
        """Whether the body takes memory, is incomplete, and has not grown for `_STALL_SECONDS`."""
        return self.size > FREE_BYTES and not self._is_whole and time.monotonic() - self.moved_at > _STALL_SECONDS

    async def receive(self) -> Message:
        """Return the next bytes of the body, or the client's disconnect; raise Refusal if a limit is exceeded."""
        data = b""
        if self._unpacker is None or not self._unpacker.has_more:
            message = await self._next_message()
            if message["type"] != "http.request":
                return message
            data = message.get("body", b"")
            self._has_more = message.get("more_body", False)
        else:
            await asyncio.sleep(0)
        self._packed_size += len(data)
        if self._packed_size > MAX_BODY_BYTES:
            raise body_too_large()
        has_more = self._has_more
        if self._unpacker is not None:
            try:
                data = self._unpacker.unpack(data, is_last=not self._has_more)
            except (zlib.error, ValueError) as error:
                reason = f"The body does not match its Content-Encoding: {error}."
                raise Refusal(reason, 400, code="invalid_encoding") from error
            has_more = has_more or self._unpacker.has_more
        self.size += len(data)
        self._values += sum(data.count(mark) for mark in _VALUE_MARKS)
        if self.size - self._size_at_move >= FREE_BYTES:
            self.moved_at, self._size_at_move = time.monotonic(), self.size
        if self.size > MAX_BODY_BYTES:
            raise body_too_large()
        if self._values > MAX_VALUES:
            raise Refusal(f"The body has more than {MAX_VALUES:,} values.", 413)
        self._budget.hold(self)
        self._is_whole = not has_more
        return {"type": "http.request", "body": data, "more_body": has_more}

    def refuse(self, refusal: Refusal) -> None:
        """Stop waiting for the rest of the body, and refuse the request."""
        self._refusal = refusal
        if self._waiting_task is not None:
            self._waiting_task.cancel()

    def close(self) -> None:
        """Free the memory of the body."""
        self._budget.release(self)

    async def _next_message(self) -> Message:
        """Return the client's next message; raise Refusal if the body is refused during the wait."""
        if self._refusal is not None:
            raise self._refusal
        self._waiting_task = task = asyncio.current_task()
        try:
            return await self._receive()
        except asyncio.CancelledError:
            # Pass on a cancellation by other code, as asyncio.timeout does.
            if self._refusal is not None and task is not None and task.uncancel() == 0:
                raise self._refusal from None
            raise
        finally:
            self._waiting_task = None


class _Unpacker:
    """Unpacks gzip (RFC 1952) or deflate (RFC 1950 or RFC 1951), a limited number of bytes at a time."""

    def __init__(self, coding: str) -> None:
        self.has_more = False
        self._is_gzip = coding == "gzip"
        self._waiting = b""
        self._members = 0
        self._stream: zlib._Decompress | None = None

    def unpack(self, data: bytes, *, is_last: bool) -> bytes:
        """Return the next unpacked bytes; raise zlib.error or ValueError if the data are damaged or truncated."""
        packed = self._waiting + data
        if not self._is_gzip and self._stream is None and len(packed) < 2 and not is_last:
            # The first two bytes show whether the form is RFC 1950 or RFC 1951.
            self._waiting = packed
            return b""
        if packed and (self._stream is None or self._stream.eof):
            # Begin the next member of a gzip file, or a body in one of deflate's two forms.
            self._members += 1
            has_header = packed[0] & 15 == zlib.DEFLATED and int.from_bytes(packed[:2]) % 31 == 0
            if self._is_gzip and self._members <= _MAX_MEMBERS:
                self._stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
            elif self._members > 1:
                raise ValueError("it continues after its end")
            else:
                self._stream = zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
        if self._stream is None:
            return b""  # The body is empty.
        unpacked = self._stream.decompress(packed, _UNPACKED_BYTES)
        self._waiting = self._stream.unconsumed_tail or self._stream.unused_data
        self.has_more = bool(self._waiting) or len(unpacked) == _UNPACKED_BYTES
        if is_last and not self.has_more and not self._stream.eof:
            raise ValueError("it is truncated")
        return unpacked


def coding_of(header: str) -> str:
    """Return the coding in a Content-Encoding header, or "" without one; raise Refusal if it is not supported."""
    codings = [coding for name in header.lower().split(",") if (coding := name.strip()) not in ("", "identity")]
    found = ", ".join(codings).removeprefix("x-")
    if found and found not in CODINGS:
        known = " or ".join(CODINGS)
        message = f"Content-Encoding {header!r} is not supported; send the body uncompressed, or with {known}."
        raise Refusal(message, 415, code="unsupported_encoding", headers={"Accept-Encoding": ", ".join(CODINGS)})
    return found
