"""The ways to send a question to the server: plain HTTP, OpenAI's client, a slow reader, and clients that vanish."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

import httpx
import openai
from outcomes import JSON, Completion, Lost, Odd, Outcome, Page, of_chunks, of_error, of_events, of_whole
from questions import CHAT, Question

# For a response on a busy machine, from a server that is frozen at times and swaps models all the time.
MAX_SECONDS = 120.0
KEY = "soak"
_SLOW_BYTES, _SLOW_PAUSE = 512, 0.02

Ask = Callable[[Question], Awaitable[Outcome]]


class Channels:
    """A client of the server at `url` that keeps its connections."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = httpx.AsyncClient(base_url=url, timeout=MAX_SECONDS, trust_env=False)
        plain = httpx.AsyncClient(timeout=MAX_SECONDS, trust_env=False)
        self._openai = openai.AsyncOpenAI(
            base_url=f"{url}/v1",
            api_key=KEY,
            max_retries=0,
            http_client=plain,  # type: ignore[arg-type,unused-ignore] # takes this, too
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()
        await self._openai.close()

    def choose(self, question: Question, rng: Random) -> tuple[Question, Ask]:
        """Choose a random way to ask the question; return the question, perhaps as one for a stream, and the way."""
        if not isinstance(question.body, dict) or question.refusal:
            return question, self.ask_over_http
        asked = question.as_stream if rng.random() < 0.5 else question
        if asked is not question and rng.random() < 0.15:
            return asked, self.ask_slowly
        is_official = question.path == CHAT and rng.random() < 0.4
        return asked, self.ask_with_openai if is_official else self.ask_over_http

    async def ask_over_http(self, question: Question) -> Outcome:
        """Ask over plain HTTP and return the outcome."""
        has_begun = False
        try:
            async with asyncio.timeout(MAX_SECONDS), self._http.stream(**_request(question)) as response:
                has_begun = True
                text = (await response.aread()).decode()
                return _read(question, response, text)
        except TimeoutError:
            return Lost("late", f"nothing for {MAX_SECONDS:g} s")
        except httpx.TransportError as fault:
            return _lost(fault, has_begun)

    async def ask_with_openai(self, question: Question) -> Outcome:
        """Ask with OpenAI's client and return the outcome."""
        chunks: list[JSON] = []
        try:
            async with asyncio.timeout(MAX_SECONDS):
                return await self._ask_with_openai(question, chunks)
        except TimeoutError:
            return Lost("late", f"nothing for {MAX_SECONDS:g} s")
        except openai.APIStatusError as fault:
            after = fault.response.headers.get("Retry-After")
            return of_error(fault.status_code, fault.response.json(), retry_after=after)
        except openai.APIConnectionError as fault:
            return _lost(fault.__cause__ or fault, bool(chunks))
        except httpx.TransportError as fault:
            return _lost(fault, True)
        except openai.APIError as fault:
            return of_error(200, {"error": fault.body}, in_stream=True)

    async def _ask_with_openai(self, question: Question, chunks: list[JSON]) -> Outcome:
        assert isinstance(question.body, dict)
        # The client takes fields that OpenAI does not define separately.
        body = dict(question.body)
        extra = {name: body.pop(name) for name in ("top_k",) if name in body}
        response = await self._openai.chat.completions.create(**body, extra_body=extra)
        if not body.get("stream"):
            return of_whole(response.model_dump())
        async for chunk in response:
            chunks.append(chunk.model_dump())
        return _whole_or_cut(chunks)

    async def ask_slowly(self, question: Question) -> Outcome:
        """Ask for a stream and read it in small pieces with pauses."""
        raw = b""
        try:
            async with asyncio.timeout(MAX_SECONDS):
                reader, writer = await connection(self._url, small=True)
                try:
                    writer.write(request_bytes(question))
                    while piece := await reader.read(_SLOW_BYTES):
                        raw += piece
                        await asyncio.sleep(_SLOW_PAUSE)
                finally:
                    writer.close()
        except TimeoutError:
            return Lost("late", f"no end within {MAX_SECONDS:g} s, after {raw[-300:]!r}")
        except OSError as fault:
            return Lost("slow" if raw else "refused", repr(fault))
        return _read_raw(raw)


async def connection(url: str, *, small: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection to the server; with `small` buffers, unread bytes soon block the server."""
    sock = socket.socket()
    if small:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    try:
        address = httpx.URL(url)
        await asyncio.get_running_loop().sock_connect(sock, (address.host, address.port))
        return await asyncio.open_connection(sock=sock, limit=_SLOW_BYTES)
    except BaseException:
        sock.close()
        raise


def request_bytes(question: Question) -> bytes:
    """Return the bytes of a request that closes its connection."""
    body = json.dumps(question.body).encode()
    head = (
        f"POST {question.path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        f"Connection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _request(question: Question) -> JSON:
    body = question.body
    headers = {"Authorization": f"Bearer {'wrong' if question.key_is_wrong else KEY}"}
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    return {"method": question.method, "url": question.path, "content": content, "headers": headers}


def _read(question: Question, response: httpx.Response, text: str) -> Outcome:
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        return of_events(text)
    try:
        document = json.loads(text)
    except ValueError:
        return Odd(f"status {response.status_code} with {text[:300]!r}")
    if question.method == "GET" and "error" not in document:
        return Page(response.status_code, document)
    if response.status_code != 200:
        return of_error(response.status_code, document, retry_after=response.headers.get("Retry-After"))
    return of_whole(document)


def _read_raw(raw: bytes) -> Outcome:
    head, _, body = raw.partition(b"\r\n\r\n")
    if not head:
        return Lost("closed", "not a byte came")
    status = int(head.split()[1])
    if status == 200:
        found = of_events(_join_chunks(body).decode(errors="replace"))
        # The server may close the connection of a slow reader when it stops.
        return Lost("slow", found.detail) if isinstance(found, Lost) else found
    after = "1" if b"retry-after" in head.lower() else None
    return of_error(status, json.loads(body), retry_after=after)


def _join_chunks(body: bytes) -> bytes:
    """Join the chunks of a body that have arrived."""
    pieces = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        pieces.append(body[:length])
        body = body[length + 2 :]
    return b"".join(pieces)


def _whole_or_cut(chunks: list[JSON]) -> Completion | Lost:
    completion = of_chunks(chunks)
    is_whole = bool(completion.texts) and completion.texts.keys() == completion.reasons.keys()
    return completion if is_whole else Lost("cut", f"after {len(chunks)} chunks")


def _lost(fault: BaseException, has_begun: bool) -> Lost:
    if isinstance(fault, httpx.TimeoutException):
        return Lost("late", repr(fault))
    if isinstance(fault, httpx.ConnectError):
        return Lost("refused", repr(fault))
    return Lost("cut" if has_begun else "closed", repr(fault))


_MAX_STAY_SECONDS = 20.0  # Of a rude client.
_TINY = b"GET /h HTTP/1.1\r\nHost: localhost\r\n\r\n"
_LARGE_BODY = 4 << 20

Farewell = Callable[[asyncio.StreamWriter], None]
Vanish = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes, Random], Awaitable[None]]


async def be_rude(url: str, question: Question, rng: Random) -> str | None:
    """Ask and vanish; return the point, or None if the server was not reached or does not close the connection."""
    place, vanish = rng.choice(list(_PLACES.items()))
    manner, leave = rng.choice(list(_FAREWELLS.items()))
    try:
        async with asyncio.timeout(_MAX_STAY_SECONDS):
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
    for _pause in range(rng.randrange(10)):
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
