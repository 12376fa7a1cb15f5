"""The door between the hub's client library and the network: every request leaves and every answer comes in here.

The user's token leaves for the hub itself only. No answer is larger, slower or longer than the limits.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from contextvars import ContextVar

import httpcore2
import httpx2

from mlxk2.formatting import human_size
from mlxk2.hub import private
from mlxk2.hub.limits import LimitExceeded, Limits, Watch, current_file, current_question, set_inside

# What describes the body as it was on the way; what the library gets is plain.
ON_THE_WAY = ("content-encoding", "content-length", "transfer-encoding")
FIRST_REDIRECT = 300
FILE_STATUSES = (200, 206)
# The client hands on a request's extensions when it follows a redirect, so that the chain has one deadline.
DEADLINE = "mlxk2_deadline"
CONNECT_SECONDS = 30.0
WRITE_SECONDS = 60.0
UPLOADS = ("POST", "PUT", "PATCH", "DELETE")

_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


def client(endpoint: str, limits: Limits) -> httpx2.Client:
    """Make the library's own client, with its proxies and certificates, and stand guard at its network."""
    made: httpx2.Client = private.default_client_factory()
    made._transport = _guarded(made._transport, endpoint, limits)
    made._mounts = {
        pattern: None if transport is None else _guarded(transport, endpoint, limits)
        for pattern, transport in made._mounts.items()
    }
    return made


def _guarded(transport: httpx2.BaseTransport, endpoint: str, limits: Limits) -> Guard:
    if isinstance(transport, httpx2.HTTPTransport):
        pool = transport._pool
        pool._network_backend = WatchedBackend(pool._network_backend)
    return Guard(transport, endpoint, limits)


class Guard(httpx2.BaseTransport):
    """A transport that keeps the token at home and reads answers within limits; only files are streamed."""

    def __init__(self, transport: httpx2.BaseTransport, endpoint: str, limits: Limits) -> None:
        self._transport = transport
        self._origin = httpx2.URL(endpoint).origin
        self._limits = limits

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; LimitExceeded when its answer is beyond the limits."""
        if request.url.origin != self._origin:
            request.headers.pop("authorization", None)
        # The hub needs no cookies, and a cookie of one port would go to every other port of its host.
        request.headers.pop("cookie", None)
        if question := current_question():
            question.ask()
        file_size = current_file()
        watch = self._watch(request, file_size)
        with set_inside(_WATCH, watch):
            answer = self._transport.handle_request(request)
        if file_size is not None and answer.status_code in FILE_STATUSES:
            assert isinstance(answer.stream, httpx2.SyncByteStream)
            stream = WatchedBody(answer.stream, watch)
            return httpx2.Response(
                answer.status_code, headers=answer.headers, stream=stream, extensions=answer.extensions
            )
        return self._read(request.method, answer, watch)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def _watch(self, request: httpx2.Request, file_size: int | None) -> Watch:
        deadline = request.extensions.setdefault(DEADLINE, time.monotonic() + self._limits.answer_seconds)
        watch = Watch(self._limits, file_size, deadline)
        if request.method in UPLOADS:
            watch.allow_upload()
        return watch

    def _read(self, method: str, answer: httpx2.Response, watch: Watch) -> httpx2.Response:
        """Read an answer whole, decompressed; of a redirect's or an error's text only the beginning."""
        with closing(answer), set_inside(_WATCH, watch):
            self._check_pause(answer)
            is_result = answer.status_code < FIRST_REDIRECT
            body = b"" if method == "HEAD" else self._body(answer, is_result)
        if question := current_question():
            question.count(len(body))
        headers = answer.headers.copy()
        if method != "HEAD":
            for name in ON_THE_WAY:
                headers.pop(name, None)
            if not is_result and body:
                body = _legible(body, headers.get("content-type", ""))
                headers["content-type"] = "application/json"
        return httpx2.Response(answer.status_code, headers=headers, content=body, extensions=answer.extensions)

    def _body(self, answer: httpx2.Response, is_result: bool) -> bytes:
        most = self._limits.answer_bytes if is_result else self._limits.error_bytes
        body = bytearray()
        try:
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > most:
                    break
        except (httpx2.DecodingError, LimitExceeded):
            if is_result:
                raise
            # The status says enough.
        if is_result and len(body) > most:
            raise LimitExceeded(f"is larger than {human_size(most)}")
        return bytes(body[:most])

    def _check_pause(self, answer: httpx2.Response) -> None:
        """Refuse to wait for as long as an answer asks; the library would sleep until then."""
        limit = private.parse_ratelimit_headers(answer.headers)
        after = answer.headers.get("retry-after", "").strip()
        asked: list[float] = [limit.reset_in_seconds] if limit is not None and limit.remaining == 0 else []
        asked += [float(after)] if after.isascii() and after.isdigit() else []
        if answer.status_code >= FIRST_REDIRECT and max(asked, default=0) > self._limits.pause_seconds:
            raise LimitExceeded(f"({answer.status_code}) asks to wait longer than {self._limits.pause_seconds} seconds")


def _legible(body: bytes, content_type: str) -> bytes:
    """Return the text of an error in the form in which the library reads it; a page for people says nothing to it.

    The library would stumble over any other form, so that the status would be lost.
    """
    text = body.decode("utf-8", "replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not _is_list_of_messages(said.get("errors")):
        said = {} if "html" in content_type.lower() else {"error": text}
    return json.dumps(said).encode()


def _is_list_of_messages(errors: object) -> bool:
    return errors is None or (isinstance(errors, list) and all(isinstance(error, dict) for error in errors))


class WatchedBody(httpx2.SyncByteStream):
    """The body of a file, read under a watch."""

    def __init__(self, stream: httpx2.SyncByteStream, watch: Watch) -> None:
        self._stream = stream
        self._watch = watch

    def __iter__(self) -> Iterator[bytes]:
        pieces = iter(self._stream)
        while True:
            with set_inside(_WATCH, self._watch):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def close(self) -> None:
        """Close the connection, or give it back."""
        self._stream.close()


class WatchedBackend(httpcore2.NetworkBackend):
    """Makes connections whose reads are counted."""

    def __init__(self, backend: httpcore2.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect, within a limit of time of our own where the library sets none."""
        stream = self._backend.connect_tcp(host, port, timeout or CONNECT_SECONDS, local_address, socket_options)
        return WatchedStream(stream)

    def sleep(self, seconds: float) -> None:
        """Wait before another attempt."""
        self._backend.sleep(seconds)


class WatchedStream(httpcore2.NetworkStream):
    """A connection whose reads are counted by the watch of the request that is under way."""

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what there is; LimitExceeded when too much came, or too little in the time."""
        watch = _WATCH.get()
        if watch is None:
            return self._stream.read(max_bytes, timeout)
        began = time.monotonic()
        try:
            data = self._stream.read(max_bytes, watch.patience(timeout))
        except httpcore2.ReadTimeout:
            watch.count(0, time.monotonic() - began)
            raise
        watch.count(len(data), time.monotonic() - began)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of it, as long as it moves."""
        self._stream.write(buffer, timeout or WRITE_SECONDS)
        if watch := _WATCH.get():
            watch.sent()

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """Encrypt the connection, within a limit of time."""
        return WatchedStream(self._stream.start_tls(ssl_context, server_hostname, timeout or CONNECT_SECONDS))

    def get_extra_info(self, info: str) -> object:
        """Say what the connection itself says."""
        return self._stream.get_extra_info(info)
