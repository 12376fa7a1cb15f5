"""Faults on demand: every response passes through here, and some are corrupted, cut, slowed down or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from support.hub.log import Log, Request

PIECE_BYTES = 1 << 18
SLOW_PIECE_BYTES = 1 << 14

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Cut(Exception):
    """Close the connection in the middle of a response."""


@dataclass
class Fault:
    """A fault in the responses to the next `times` requests whose path contains `part`.

    The hub waits `after` seconds first. A `status` replaces the response. `cut_after` is the number of bytes of the
    body after which the connection is closed or, with `dies`, the whole hub stops. `extra` bytes are appended to the
    body; a negative number removes as many. `flip` changes one bit. `rate` is in bytes a second.
    """

    part: str
    method: str = "GET"
    times: float = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0
    cut_after: int | None = None
    dies: bool = False
    extra: int = 0
    flip: bool = False
    rate: float = 0


@dataclass
class Faults:
    """The faults that tests have planned."""

    planned: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        """Plan a fault; if several match a request, the first is applied."""
        self.planned.append(fault)

    def clear(self) -> None:
        """Forget all planned faults."""
        self.planned.clear()

    def take(self, request: Request) -> Fault | None:
        """Return the next fault for a request, counted down; None if there is none."""
        for fault in self.planned:
            if fault.times > 0 and fault.method == request.method and fault.part in request.path:
                fault.times -= 1
                return fault
        return None


class Gate:
    """The entrance of one origin: logs every request and applies its fault."""

    def __init__(self, app: App, origin: str, log: Log, faults: Faults, die: Callable[[], None]) -> None:
        self._app = app
        self._origin = origin
        self._log = log
        self._faults = faults
        self._die = die

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        request = self._logged(scope)
        # Keep the path as it was sent: a branch dev/x is one step of it, dev%2Fx.
        scope = {**scope, "path": request.path}
        fault = self._faults.take(request)
        if fault is None:
            await self._app(scope, receive, Body(send, request, Fault("")).send)
            return
        await asyncio.sleep(fault.after)
        if fault.status:
            await _respond(send, request, fault)
            return
        try:
            await self._app(scope, receive, Body(send, request, fault).send)
        except Cut:
            if fault.dies:
                self._die()
            raise

    def _logged(self, scope: Message) -> Request:
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        raw_path = scope["raw_path"].decode()
        request = Request(self._origin, scope["method"], raw_path, scope["query_string"].decode(), headers)
        self._log.requests.append(request)
        return request


async def _respond(send: Send, request: Request, fault: Fault) -> None:
    request.status = fault.status
    headers = [(name.lower().encode(), value.encode()) for name, value in fault.headers.items()]
    headers.append((b"content-length", b"0"))
    await send({"type": "http.response.start", "status": fault.status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


class Body:
    """Sends the body of a response and applies its fault."""

    def __init__(self, send: Send, request: Request, fault: Fault) -> None:
        self._send = send
        self._request = request
        self._fault = fault

    async def send(self, message: Message) -> None:
        """Pass on a message of the application, changed by the fault."""
        if message["type"] == "http.response.start":
            await self._start(message)
        else:
            await self._body(message)

    async def _start(self, message: Message) -> None:
        self._request.status = message["status"]
        headers = [(n, self._resized(v) if n == b"content-length" else v) for n, v in message["headers"]]
        await self._send({**message, "headers": headers})

    def _resized(self, length: bytes) -> bytes:
        self._request.promised = int(length)
        has_body = self._request.method == "GET"
        return str(int(length) + self._fault.extra).encode() if has_body else length

    async def _body(self, message: Message) -> None:
        pieces = list(self._pieces(self._corrupt(message.get("body", b""))))
        for number, piece in enumerate(pieces, 1):
            is_last = number == len(pieces) and not message.get("more_body")
            await self._send({"type": "http.response.body", "body": piece, "more_body": not is_last})
            self._request.sent += len(piece)
            if self._fault.rate:
                await asyncio.sleep(len(piece) / self._fault.rate)
            if self._fault.cut_after is not None and self._request.sent >= self._fault.cut_after:
                raise Cut

    def _corrupt(self, body: bytes) -> bytes:
        fault = self._fault
        if fault.flip and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if fault.extra and self._request.method == "GET":
            body = body[: fault.extra] if fault.extra < 0 else body + b"x" * fault.extra
        return body

    def _pieces(self, body: bytes) -> Iterator[bytes | memoryview]:
        size = SLOW_PIECE_BYTES if self._fault.rate else PIECE_BYTES
        view = memoryview(body)
        cut = self._fault.cut_after
        ends = sorted({*range(size, len(body), size), len(body), *([cut] if cut and cut < len(body) else [])})
        start = 0
        for end in ends:
            yield view[start:end]
            start = end
