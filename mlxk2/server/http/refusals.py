"""Refusals: requests that the server turns away before they reach a route, whichever API they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.responses import Response

# Seconds after which a client that was refused may try again.
RETRY_AFTER = "1"
MAX_BODY_BYTES = 32 << 20


class Refusal(Exception):
    """A request that is refused, with the status, the code and the headers of the response.

    `code` is one of the API's words for errors; None leaves the choice to the API.
    """

    def __init__(
        self, message: str, status: int, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.headers = headers


# Renders a refusal as the API that owns this path writes its errors.
RenderRefusal = Callable[[str, Refusal], Response]


def body_too_large() -> Refusal:
    """Return the refusal of a body that is larger than the limit."""
    return Refusal(f"The body is larger than {MAX_BODY_BYTES >> 20} MB.", 413)


def busy(message: str) -> Refusal:
    """Return the refusal of a request for which there is no memory now."""
    return Refusal(message, 503, code="server_busy", headers={"Retry-After": RETRY_AFTER})
