"""A hub whose responses a test can replace route by route; by default they are correct."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NamedTuple

REPO = "org/model"
COMMIT = "a" * 40
DATA = b"{}"
BLOB = hashlib.sha1(b"blob 2\0" + DATA).hexdigest()
INFO = {"id": REPO, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "siblings": []}
ENTRY = {"type": "file", "path": "config.json", "size": len(DATA), "oid": BLOB}

INFO_ROUTE, TREE_ROUTE, FILE_ROUTE = "/revision/", "/tree/", "/resolve/"


class Handler(BaseHTTPRequestHandler):
    """One request; `send` sends its response."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each response waits 40 ms
    body = b""

    def send(self, body: bytes | str | object, status: int = 200, **headers: str) -> None:
        """Send a text, or any other value as JSON; an underscore in a header's name becomes a hyphen."""
        data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_head(status, **{"content_length": str(len(data))} | headers)
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_head(self, status: int = 200, **headers: str) -> None:
        """Send the head of a response whose body the test sends itself."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send_slowly(self, data: bytes, size: int, pause: float) -> None:
        """Send bytes, `size` at a time, with a pause in seconds after each."""
        for start in range(0, len(data), size):
            self.wfile.write(data[start : start + size])
            time.sleep(pause)

    def log_message(self, *_: object) -> None:
        """Keep stderr empty."""


Responder = Callable[[Handler], None]


class Seen(NamedTuple):
    """A request that arrived, with the headers that could leak a secret."""

    path: str
    authorization: str | None
    cookie: str | None


class HostileHub:
    """A running hub: its address and the requests that it received."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.seen: list[Seen] = []

    def count(self, part: str) -> int:
        """Return the number of requests whose path contains `part`."""
        return sum(part in seen.path for seen in self.seen)


def _respond_correctly(request: Handler) -> None:
    for part, body in ((TREE_ROUTE, [ENTRY]), (FILE_ROUTE, DATA), ("/api/models/", INFO)):
        if part in request.path:
            request.send(body)
            return
    request.send({}, 404)


@contextmanager
def hostile_hub(routes: Mapping[str, Responder]) -> Iterator[HostileHub]:
    """Serve a hub; a route responds to every request whose path contains it, and the first match counts."""
    hub: HostileHub

    class Scripted(Handler):
        def do_GET(self) -> None:
            self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
            hub.seen.append(Seen(self.path, self.headers.get("authorization"), self.headers.get("cookie")))
            answer = next((answer for part, answer in routes.items() if part in self.path), _respond_correctly)
            try:
                answer(self)
            except (ConnectionError, TimeoutError):
                self.close_connection = True

        do_POST = do_PUT = do_HEAD = do_GET

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: Any) -> None:
            pass

    with Server(("127.0.0.1", 0), Scripted) as server:
        hub = HostileHub(server.server_port)
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield hub
        server.shutdown()
