"""The bodies of requests on their way in: unpacked, and within the limits of one and of all together."""

from __future__ import annotations

import asyncio
import time
import zlib

from starlette.responses import Response
from starlette.types import Message, Receive

from mlxk2.server.openai.errors import RETRY_AFTER, refusal

MOST_BODY_BYTES = 32 << 20
# The bodies of all requests together, beyond the first part of each.
MOST_HELD_BYTES = 256 << 20
# A body up to this size is never refused for the sake of others, so that large ones can't lock out small requests.
FREE_BYTES = 64 << 10
# Each value that JSON is parsed into takes a hundred times the bytes of its text, and all other requests wait.
_MARKS = b",[{"
MOST_MARKS = 1 << 20
CODINGS = ("gzip", "deflate")
# Bytes to unpack before other requests have their turn.
_PIECE = 1 << 20
# A gzip file may consist of several, and each costs more time than its bytes.
_MAX_MEMBERS = 64
# Seconds without another part of FREE_BYTES, after which a body may have to make room for others.
_STALLED = 1.0


class BodyRefused(Exception):
    """A body that can't be read, or goes past a limit."""

    def __init__(self, answer: Response) -> None:
        super().__init__()
        self.answer = answer


class Budget:
    """The memory for the bodies of all requests; a body that stalls makes room for one that comes."""

    def __init__(self) -> None:
        self._held: dict[Body, int] = {}
        self._total = 0

    def hold(self, body: Body) -> None:
        """Count what has arrived of a body; raise BodyRefused when there is no room for it."""
        size = max(0, body.size - FREE_BYTES)
        self._total += size - self._held.get(body, 0)
        self._held[body] = size
        while self._total > MOST_HELD_BYTES:
            stalled = [other for other in self._held if other is not body and other.is_stalled]
            if not stalled:
                raise BodyRefused(_busy("The server holds too many large requests. Try again in a moment."))
            slowest = min(stalled, key=lambda other: other.moved_at)
            self.release(slowest)
            slowest.refuse(_busy("The body came too slowly while other requests needed the memory."))

    def release(self, body: Body) -> None:
        """Count a body no more."""
        self._total -= self._held.pop(body, 0)


class Body:
    """The body of one request: an ASGI `receive` that unpacks it and keeps to the limits. `close` ends it."""

    def __init__(self, receive: Receive, coding: str, budget: Budget) -> None:
        self.size = 0
        self.moved_at = time.monotonic()
        self._receive = receive
        self._unpacker = _Unpacker(coding) if coding else None
        self._budget = budget
        self._sent = 0
        self._marks = 0
        self._mark_of_move = 0
        self._is_whole = False
        self._has_more = True
        self._waits: asyncio.Task[object] | None = None
        self._refusal: Response | None = None

    @property
    def is_stalled(self) -> bool:
        """Whether it takes memory, is not complete, and has not grown for a while."""
        return self.size > FREE_BYTES and not self._is_whole and time.monotonic() - self.moved_at > _STALLED

    async def receive(self) -> Message:
        """Return the next part of the body, or that the client has gone; raise BodyRefused past a limit."""
        part = b""
        if self._unpacker is None or not self._unpacker.has_more:
            message = await self._next()
            if message["type"] != "http.request":
                return message
            part = message.get("body", b"")
            self._has_more = message.get("more_body", False)
        else:
            await asyncio.sleep(0)
        self._sent += len(part)
        if self._sent > MOST_BODY_BYTES:
            raise BodyRefused(too_large())
        unpacked = self._unpack(part)
        self._take(unpacked)
        has_more = self._has_more or (self._unpacker is not None and self._unpacker.has_more)
        self._is_whole = not has_more
        return {"type": "http.request", "body": unpacked, "more_body": has_more}

    def refuse(self, answer: Response) -> None:
        """Stop waiting for the rest, and give this answer."""
        self._refusal = answer
        if self._waits is not None:
            self._waits.cancel()

    def close(self) -> None:
        """Give back the memory."""
        self._budget.release(self)

    async def _next(self) -> Message:
        if self._refusal is not None:
            raise BodyRefused(self._refusal)
        self._waits = task = asyncio.current_task()
        try:
            return await self._receive()
        except asyncio.CancelledError:
            # As asyncio.timeout does: only a cancellation from elsewhere goes on as one.
            if self._refusal is not None and task is not None and task.uncancel() == 0:
                raise BodyRefused(self._refusal) from None
            raise
        finally:
            self._waits = None

    def _unpack(self, part: bytes) -> bytes:
        if self._unpacker is None:
            return part
        try:
            return self._unpacker.unpack(part, is_last=not self._has_more)
        except (zlib.error, ValueError) as error:
            message = f"The body is not what its Content-Encoding says: {error}."
            raise BodyRefused(refusal(message, 400, code="invalid_encoding")) from error

    def _take(self, part: bytes) -> None:
        self.size += len(part)
        self._marks += sum(part.count(mark) for mark in _MARKS)
        if self.size - self._mark_of_move >= FREE_BYTES:
            self.moved_at, self._mark_of_move = time.monotonic(), self.size
        if self.size > MOST_BODY_BYTES:
            raise BodyRefused(too_large())
        if self._marks > MOST_MARKS:
            raise BodyRefused(refusal(f"The body has more than {MOST_MARKS:,} values.", 413))
        self._budget.hold(self)


class _Unpacker:
    """Unpacks gzip (RFC 1952) or deflate (zlib's form, RFC 1950, or none) in pieces of bounded size."""

    def __init__(self, coding: str) -> None:
        self.has_more = False
        self._is_gzip = coding == "gzip"
        self._waiting = b""
        self._members = 0
        self._stream: zlib._Decompress | None = None

    def unpack(self, part: bytes, *, is_last: bool) -> bytes:
        """Return the next piece; raise zlib.error or ValueError for what is broken, cut off or followed by more."""
        packed = self._waiting + part
        if not self._is_gzip and self._stream is None and len(packed) < 2 and not is_last:
            # The first two bytes show the form.
            self._waiting = packed
            return b""
        if packed and (self._stream is None or self._stream.eof):
            self._stream = self._begin(packed)
        if self._stream is None:
            return b""  # a body of no bytes
        piece = self._stream.decompress(packed, _PIECE)
        self._waiting = self._stream.unconsumed_tail or self._stream.unused_data
        self.has_more = bool(self._waiting) or len(piece) == _PIECE
        if is_last and not self.has_more and not self._stream.eof:
            raise ValueError("it is cut off")
        return piece

    def _begin(self, packed: bytes) -> zlib._Decompress:
        self._members += 1
        if self._is_gzip and self._members <= _MAX_MEMBERS:
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        if self._members > 1:
            raise ValueError("something follows its end")
        has_header = packed[0] & 15 == zlib.DEFLATED and int.from_bytes(packed[:2]) % 31 == 0
        return zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)


def coding_of(header: str) -> str:
    """Return the coding of a Content-Encoding header, "" for none; raise BodyRefused for one that is not known."""
    codings = [coding for part in header.lower().split(",") if (coding := part.strip()) not in ("", "identity")]
    found = ", ".join(codings).removeprefix("x-")
    if found and found not in CODINGS:
        known = " or ".join(CODINGS)
        message = f"Content-Encoding {header!r} is not supported; send the body as it is, or with {known}."
        headers = {"Accept-Encoding": ", ".join(CODINGS)}
        raise BodyRefused(refusal(message, 415, code="unsupported_encoding", headers=headers))
    return found


def too_large() -> Response:
    """Return the answer to a body past the limit."""
    return refusal(f"The body is larger than {MOST_BODY_BYTES >> 20} MB.", 413)


def _busy(message: str) -> Response:
    return refusal(message, 503, code="server_busy", headers={"Retry-After": RETRY_AFTER})
