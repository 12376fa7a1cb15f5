"""The transport between huggingface_hub and the network, through which every request and response passes.

It sends the user's token only to the hub itself, and enforces the limits on the size and time of responses.
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
from mlxk2.hub.limits import LimitExceeded, Limits, Watch, current_call, current_file_bytes, set_inside

# These headers describe the body on the network; the library gets it decompressed and in one piece.
TRANSFER_HEADERS = ("content-encoding", "content-length", "transfer-encoding")
FIRST_REDIRECT = 300
FILE_STATUSES = (200, 206)
# The client copies a request's extensions when it follows a redirect, so that all redirects share one deadline.
DEADLINE = "mlxk2_deadline"
CONNECT_SECONDS = 30.0
WRITE_SECONDS = 60.0
UPLOAD_METHODS = ("POST", "PUT", "PATCH", "DELETE")

_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


def make_client(endpoint: str, limits: Limits) -> httpx2.Client:
    """Make the library's standard client, with its proxies and certificates, and guard its transports."""
    client: httpx2.Client = private.default_client_factory()
    client._transport = _guard(client._transport, endpoint, limits)
    client._mounts = {
        pattern: None if transport is None else _guard(transport, endpoint, limits)
        for pattern, transport in client._mounts.items()
    }
    return client


def _guard(transport: httpx2.BaseTransport, endpoint: str, limits: Limits) -> GuardedTransport:
    if isinstance(transport, httpx2.HTTPTransport):
        pool = transport._pool
        pool._network_backend = WatchedBackend(pool._network_backend)
    return GuardedTransport(transport, endpoint, limits)


class GuardedTransport(httpx2.BaseTransport):
    """A transport that sends the token only to the hub and reads responses within limits; it streams only files."""

    def __init__(self, transport: httpx2.BaseTransport, endpoint: str, limits: Limits) -> None:
        self._transport = transport
        self._origin = httpx2.URL(endpoint).origin
        self._limits = limits

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; raise LimitExceeded if its response exceeds the limits."""
        if request.url.origin != self._origin:
            request.headers.pop("authorization", None)
        # The hub needs no cookies, and a cookie from one port would be sent to every port of the host.
        request.headers.pop("cookie", None)
        if call := current_call():
            call.count_request()
        file_bytes = current_file_bytes()
        deadline = request.extensions.setdefault(DEADLINE, time.monotonic() + self._limits.response_seconds)
        watch = Watch(self._limits, file_bytes, deadline)
        if request.method in UPLOAD_METHODS:
            watch.allow_upload()
        with set_inside(_WATCH, watch):
            response = self._transport.handle_request(request)
        if file_bytes is not None and response.status_code in FILE_STATUSES:
            assert isinstance(response.stream, httpx2.SyncByteStream)
            stream = WatchedBody(response.stream, watch)
            return httpx2.Response(
                response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
            )
        return self._read_whole(request.method, response, watch)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def _read_whole(self, method: str, response: httpx2.Response, watch: Watch) -> httpx2.Response:
        """Read and decompress a whole response; for a redirect or an error, read only the beginning of its text."""
        is_result = response.status_code < FIRST_REDIRECT
        max_bytes = self._limits.response_bytes if is_result else self._limits.error_bytes
        body = bytearray()
        with closing(response), set_inside(_WATCH, watch):
            self._check_pause(response)
            try:
                for chunk in response.iter_bytes() if method != "HEAD" else ():
                    body += chunk
                    if len(body) > max_bytes:
                        break
            except (httpx2.DecodingError, LimitExceeded):
                if is_result:
                    raise
                # For an error, the status is enough.
        if is_result and len(body) > max_bytes:
            raise LimitExceeded(f"is larger than {human_size(max_bytes)}")
        content = bytes(body[:max_bytes])
        if call := current_call():
            call.count_bytes(len(content))
        headers = response.headers.copy()
        if method != "HEAD":
            for name in TRANSFER_HEADERS:
                headers.pop(name, None)
            if not is_result and content:
                content = _rewrite_error(content, headers.get("content-type", ""))
                headers["content-type"] = "application/json"
        return httpx2.Response(response.status_code, headers=headers, content=content, extensions=response.extensions)

    def _check_pause(self, response: httpx2.Response) -> None:
        """Raise LimitExceeded when a response asks for a very long pause, because the library would sleep that long."""
        limit = private.parse_ratelimit_headers(response.headers)
        after = response.headers.get("retry-after", "").strip()
        pauses: list[float] = [limit.reset_in_seconds] if limit is not None and limit.remaining == 0 else []
        pauses += [float(after)] if after.isascii() and after.isdigit() else []
        if response.status_code >= FIRST_REDIRECT and max(pauses, default=0) > self._limits.pause_seconds:
            status, seconds = response.status_code, self._limits.pause_seconds
            raise LimitExceeded(f"({status}) asks to wait longer than {seconds} seconds")


def _rewrite_error(body: bytes, content_type: str) -> bytes:
    """Return the body of an error in the JSON form that the library can read; drop an HTML page.

    The library raises another exception for any other form, and then the status would be lost.
    """
    text = body.decode("utf-8", "replace")
    try:
        error = json.loads(text)
    except (ValueError, RecursionError):
        error = None
    is_readable = isinstance(error, dict)
    if is_readable and error.get("errors") is not None:
        is_readable = isinstance(error["errors"], list) and all(isinstance(entry, dict) for entry in error["errors"])
    if not is_readable:
        error = {} if "html" in content_type.lower() else {"error": text}
    return json.dumps(error).encode()


class WatchedBody(httpx2.SyncByteStream):
    """The body of a file; a watch counts its reads."""

    def __init__(self, stream: httpx2.SyncByteStream, watch: Watch) -> None:
        self._stream = stream
        self._watch = watch

    def __iter__(self) -> Iterator[bytes]:
        chunks = iter(self._stream)
        while True:
            with set_inside(_WATCH, self._watch):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def close(self) -> None:
        """Close the connection, or return it to the pool."""
        self._stream.close()


class WatchedBackend(httpcore2.NetworkBackend):
    """Makes connections that count their reads."""

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
        """Connect within the library's time limit, or within `CONNECT_SECONDS` if the library sets none."""
        stream = self._backend.connect_tcp(host, port, timeout or CONNECT_SECONDS, local_address, socket_options)
        return WatchedStream(stream)

    def sleep(self, seconds: float) -> None:
        """Wait before another attempt."""
        self._backend.sleep(seconds)


class WatchedStream(httpcore2.NetworkStream):
    """A connection that reports its reads to the watch of the current request."""

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read the bytes that have arrived; raise LimitExceeded if they are too many, or too few for the time."""
        watch = _WATCH.get()
        if watch is None:
            return self._stream.read(max_bytes, timeout)
        start = time.monotonic()
        try:
            data = self._stream.read(max_bytes, watch.seconds_left(timeout))
        except httpcore2.ReadTimeout:
            watch.count(0, time.monotonic() - start)
            raise
        watch.count(len(data), time.monotonic() - start)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send the whole buffer; time out when no byte can be sent."""
        self._stream.write(buffer, timeout or WRITE_SECONDS)
        if watch := _WATCH.get():
            watch.restart_wait()

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """Encrypt the connection within a time limit."""
        return WatchedStream(self._stream.start_tls(ssl_context, server_hostname, timeout or CONNECT_SECONDS))

    def get_extra_info(self, info: str) -> object:
        """Return the connection's own information."""
        return self._stream.get_extra_info(info)
