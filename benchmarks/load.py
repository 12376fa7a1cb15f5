"""A client that asks a server for many streams at once, and records the times of their events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

MAX_SECONDS = 300.0  # Longer than any completion takes.
DONE = b"data: [DONE]\n"

Body = dict[str, Any]


class Completion(NamedTuple):
    """A streamed completion: its text, its number of tokens, and the seconds until the first text and until the end."""

    text: str
    tokens: int
    first: float
    last: float


class Request(NamedTuple):
    """A request: its body, the seconds to wait before it, and the number of events after which to hang up, or None."""

    body: Body
    delay: float = 0.0
    hang_up_after: int | None = None


def ask(port: int, body: Body) -> Completion:
    """Ask for one completion; raise ConnectionError when the server refuses, resets or responds with an error."""
    (completion,) = together(port, [Request(body)])
    return whole(completion)


def together(port: int, requests: Sequence[Request]) -> list[Completion | BaseException]:
    """Ask for all completions at the same moment; return each completion or its error."""

    async def all_of_them() -> list[Completion | BaseException]:
        return await asyncio.gather(*(_ask(port, request) for request in requests), return_exceptions=True)

    return asyncio.run(all_of_them())


def watch(port: int, body: Body, seen: Callable[[], None]) -> None:
    """Ask for one completion, and call `seen` at each of its events."""

    async def read_events() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await _send(writer, {"stream": True, **body})
            await _check(reader)
            while (line := await reader.readline()) and line != DONE:
                if line.startswith(b"data: {"):
                    seen()
        finally:
            writer.close()

    asyncio.run(read_events())


def whole(completion: Completion | BaseException) -> Completion:
    """Return the completion; raise the error if it is one."""
    if isinstance(completion, BaseException):
        raise completion
    return completion


async def _ask(port: int, request: Request) -> Completion:
    await asyncio.sleep(request.delay)
    start = time.perf_counter()
    async with asyncio.timeout(MAX_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await _send(writer, {"stream": True, "stream_options": {"include_usage": True}, **request.body})
            await _check(reader)
            events = await _events(reader, start, request.hang_up_after)
        finally:
            writer.close()
    return _completion(events, time.perf_counter() - start)


async def _send(writer: asyncio.StreamWriter, body: Body) -> None:
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + content)
    await writer.drain()


async def _check(reader: asyncio.StreamReader) -> None:
    status = await reader.readline()
    if b" 200 " not in status:
        raise ConnectionError(f"the server responded with {status.decode(errors='replace').strip() or 'nothing'}")
    while (await reader.readline()).strip():
        pass


async def _events(reader: asyncio.StreamReader, start: float, max_events: int | None) -> list[tuple[float, bytes]]:
    """Read all events, or at most `max_events`; they are parsed later, to leave the processor to the server."""
    events = []
    while (line := await reader.readline()) != DONE and (max_events is None or len(events) < max_events):
        if not line:
            raise ConnectionError("the stream broke")
        if line.startswith(b"data: {"):
            events.append((time.perf_counter() - start, line))
    return events


def _completion(events: Sequence[tuple[float, bytes]], last: float) -> Completion:
    text, tokens, first = "", 0, last
    for seconds, line in events:
        event = json.loads(line.removeprefix(b"data: "))
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        part = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        first = seconds if part and not text else first
        text += part
    return Completion(text, tokens, first, last)
