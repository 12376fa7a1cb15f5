"""Clients that vanish at any moment: in the head, in the body, while they wait, in the stream."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

from channels import connection, request_bytes
from questions import Question

# Seconds that a client stays at most.
_STAY = 20.0
_TINY = b"GET /h HTTP/1.1\r\nHost: localhost\r\n\r\n"
_LARGE_BODY = 4 << 20

Farewell = Callable[[asyncio.StreamWriter], None]
Vanish = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes, Random], Awaitable[None]]


async def be_rude(url: str, question: Question, rng: Random) -> str | None:
    """Ask and vanish; where, or None if the server could not be reached or does not let go."""
    place, vanish = rng.choice(list(_PLACES.items()))
    manner, leave = rng.choice(list(_FAREWELLS.items()))
    try:
        async with asyncio.timeout(_STAY):
            reader, writer = await connection(url)
            try:
                await vanish(reader, writer, request_bytes(question), rng)
                leave(writer)
                if manner == "half-close":
                    await _drain(reader)
            finally:
                writer.close()
    except (TimeoutError, OSError):
        return None
    return f"a client vanishes {place}"


async def _in_the_head(_: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, rng: Random) -> None:
    writer.write(request[: rng.randrange(1, request.index(b"\r\n\r\n"))])
    await asyncio.sleep(rng.random() / 5)


async def _in_the_body(_: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, rng: Random) -> None:
    writer.write(request[: rng.randrange(request.index(b"\r\n\r\n") + 4, len(request))])
    await asyncio.sleep(rng.random() / 5)


async def _in_the_queue(_: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, rng: Random) -> None:
    writer.write(request)
    await asyncio.sleep(rng.random() / 2)


async def _in_the_stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, rng: Random
) -> None:
    writer.write(request)
    for _ in range(rng.randrange(1, 10)):
        await reader.read(256)


async def _behind_requests_without_end(
    _: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, rng: Random
) -> None:
    writer.write(request)
    with suppress(TimeoutError):
        async with asyncio.timeout(rng.random() * 3):
            while True:
                writer.write(_TINY * 2000)
                await writer.drain()


async def _in_a_slow_body(_: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, rng: Random) -> None:
    head = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % _LARGE_BODY, request)
    writer.write(head + b" " * rng.randrange(_LARGE_BODY // 2))
    for _ in range(rng.randrange(10)):
        await writer.drain()
        await asyncio.sleep(0.3)
        writer.write(b" ")


async def _after_no_http(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes, rng: Random) -> None:
    writer.write(rng.randbytes(100) + b"\r\n\r\n")
    await writer.drain()


async def _drain(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 12):
        pass


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _half_close(writer: asyncio.StreamWriter) -> None:
    writer.write_eof()


_PLACES: dict[str, Vanish] = {
    "in the head": _in_the_head,
    "in the body": _in_the_body,
    "in the queue": _in_the_queue,
    "in the stream": _in_the_stream,
    "behind requests without end": _behind_requests_without_end,
    "in a slow body": _in_a_slow_body,
    "after no HTTP": _after_no_http,
}
_FAREWELLS: dict[str, Farewell] = {
    "reset": _reset,
    "close": asyncio.StreamWriter.close,
    "half-close": _half_close,
}
