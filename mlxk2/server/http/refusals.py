"""Refusals: errors of requests that the server refuses before they reach a route of any API."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.responses import Response

RETRY_AFTER = "1"  # Seconds after which a refused client may try again.
MAX_BODY_BYTES = 32 << 20


class Refusal(Exception):
    """A refused request, with the status, the code and the headers of the response.

    `code` is one of the API's error codes; if it is None, the API chooses the code.
    """

    def __init__(
        self, message: str, status: int, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.headers = headers


# Renders a refusal in the error form of the API that owns this path.
RenderRefusal = Callable[[str, Refusal], Response]


def body_too_large() -> Refusal:
    """Return the refusal for a body that is larger than the limit."""
    return Refusal(f"The body is larger than {MAX_BODY_BYTES >> 20} MB.", 413)


def busy(message: str) -> Refusal:
    """Return the refusal for a request for which the server has no memory now."""
    return Refusal(message, 503, code="server_busy", headers={"Retry-After": RETRY_AFTER})
