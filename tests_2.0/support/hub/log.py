"""The hub's log of requests, for tests to count."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_RANGE = re.compile(r"bytes=(\d+)-")


@dataclass
class Request:
    """One request; `sent` counts the bytes of the response's body that were handed to the network."""

    origin: str
    method: str
    path: str
    query: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0
    promised: int = 0

    @property
    def start(self) -> int:
        """Return the first byte of the requested range."""
        match = _RANGE.match(self.headers.get("range", ""))
        return int(match[1]) if match else 0

    @property
    def token(self) -> str | None:
        """Return the token of the request."""
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass
class Log:
    """All requests in the order of their arrival."""

    requests: list[Request] = field(default_factory=list)

    def find(self, method: str = "", part: str = "", origin: str = "") -> list[Request]:
        """Return the requests with this method, this part of a path and this origin (`hub` or `cdn`)."""
        return [r for r in self.requests if method in ("", r.method) and part in r.path and origin in ("", r.origin)]

    def count(self, method: str = "", part: str = "", origin: str = "") -> int:
        """Return the number of such requests."""
        return len(self.find(method, part, origin))

    def sent(self, part: str = "") -> int:
        """Return how many bytes of bodies were sent for paths that contain `part`."""
        return sum(request.sent for request in self.find("GET", part))

    def clear(self) -> None:
        """Forget all requests."""
        self.requests.clear()
