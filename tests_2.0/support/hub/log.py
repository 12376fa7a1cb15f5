"""What was asked of the hub, so that tests can count it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_RANGE = re.compile(r"bytes=(\d+)-")


@dataclass
class Request:
    """One request; `sent` are the bytes of the answer's body that were handed to the network."""

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
        """The first byte that was asked for."""
        match = _RANGE.match(self.headers.get("range", ""))
        return int(match[1]) if match else 0

    @property
    def token(self) -> str | None:
        """The token that came along."""
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass
class Log:
    """All requests, in the order in which they came."""

    requests: list[Request] = field(default_factory=list)

    def of(self, method: str = "", part: str = "", origin: str = "") -> list[Request]:
        """The requests with this method, with this in their path, to this origin (`hub` or `cdn`)."""
        return [
            r for r in self.requests
            if method in ("", r.method) and part in r.path and origin in ("", r.origin)
        ]  # fmt: skip

    def count(self, method: str = "", part: str = "", origin: str = "") -> int:
        """How many requests there were."""
        return len(self.of(method, part, origin))

    def sent(self, part: str = "") -> int:
        """How many bytes of bodies were sent for paths with this in them."""
        return sum(request.sent for request in self.of("GET", part))

    def clear(self) -> None:
        """Forget all requests."""
        self.requests.clear()
