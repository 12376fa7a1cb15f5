"""HTTP as bytes on a connection, for requests that no well-behaved client sends."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@dataclass
class Response:
    """One response; the names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Return the body as strict JSON."""
        return json.loads(self.body, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


class Wire:
    """A connection to 127.0.0.1; waiting longer than `timeout` seconds is a failure."""

    def __init__(self, port: int, *, timeout: float = 30.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout)
        self._received = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def send(self, *parts: bytes) -> Wire:
        """Send bytes as they are; stop when the server has closed the connection."""
        for part in parts:
            try:
                self._socket.sendall(part)
            except (BrokenPipeError, ConnectionResetError):
                break
        return self

    def wait_at_most(self, seconds: float) -> None:
        """Change how long the next calls may wait."""
        self._socket.settimeout(seconds)

    def half_close(self) -> None:
        """Close the sending direction of the connection."""
        with contextlib.suppress(OSError):  # the server has closed it
            self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Reset the connection."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._socket.close()

    def receive(self, most: int = 1 << 16) -> bytes:
        """Return the next bytes, b"" at the end or after a reset."""
        try:
            return self._socket.recv(most)
        except ConnectionResetError:
            return b""

    def until(self, mark: bytes) -> bytes:
        """Return everything up to the first mark, with it; fail if the connection ends first."""
        while mark not in self._received:
            received = self.receive()
            assert received, f"the connection ended after {self._received!r}"
            self._received += received
        found, _, self._received = self._received.partition(mark)
        return found + mark

    def response(self, *, of_head: bool = False) -> Response:
        """Return the next response, its chunks joined."""
        status, *lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")[:-2]
        headers = dict(_header(line) for line in lines)
        body = b"" if of_head else self._body(headers)
        return Response(int(status.split()[1]), headers, body)

    def is_over(self) -> bool:
        """Return whether the server closes the connection without sending more."""
        return not self._received and not self.receive()

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            return b"".join(self._chunks())
        if "content-length" not in headers:
            return self.rest()
        length = int(headers["content-length"])
        while len(self._received) < length:
            received = self.receive()
            assert received, "the body is cut"
            self._received += received
        body, self._received = self._received[:length], self._received[length:]
        return body

    def _chunks(self) -> Iterable[bytes]:
        while size := int(self.until(b"\r\n"), 16):
            while len(self._received) < size + 2:
                received = self.receive()
                assert received, "the body is cut"
                self._received += received
            yield self._received[:size]
            self._received = self._received[size + 2 :]
        self.until(b"\r\n")

    def rest(self) -> bytes:
        """Return everything until the end of the connection."""
        while received := self.receive():
            self._received += received
        body, self._received = self._received, b""
        return body


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.lower(), value.strip()


def post(path: str, body: bytes, *headers: str, port: int) -> bytes:
    """Return the bytes of a POST request."""
    return (
        head(
            f"POST {path} HTTP/1.1",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *headers,
            port=port,
        )
        + body
    )


def head(line: str, *headers: str, port: int) -> bytes:
    """Return the bytes of a request's head, with the right Host."""
    return "\r\n".join([line, f"Host: 127.0.0.1:{port}", *headers, "", ""]).encode("utf-8", "surrogateescape")


def assert_is_error(response: Response, status: int | None = None, param: str | None = None) -> dict[str, Any]:
    """Return the error in a response; fail unless it has OpenAI's form."""
    assert response.status >= 400 and (status is None or response.status == status), response
    assert response.headers["content-type"] == "application/json"
    document = response.json
    assert list(document) == ["error"]
    error: dict[str, Any] = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and len(error["message"]) < 2000 and "Traceback" not in error["message"]
    assert error["type"] == ("server_error" if response.status >= 500 else "invalid_request_error")
    assert param is None or error["param"] == param, error
    return error
