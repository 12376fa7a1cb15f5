"""Every fault as OpenAI's error body: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from mlxk2.errors import MlxkError, ServerBusyError, ServerStoppingError
from mlxk2.formatting import cut

# Seconds after which a refused client may try again.
RETRY_AFTER = "1"
# Messages name what clients sent, however long it was.
_MOST_MESSAGE = 1000
_CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return the error body of a status."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    message = cut(message, _MOST_MESSAGE)
    return {"error": {"message": message, "type": kind, "param": param, "code": code or _CODES.get(status)}}


def refusal(
    message: str, status: int, *, code: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return the response that refuses a request for a reason of HTTP's."""
    return JSONResponse(body(message, status, code=code), status, headers)


def of_error(error: MlxkError) -> dict[str, Any]:
    """Return the body of an error of ours; the hint and the matches become part of the message."""
    extra = [str(error.details[key]) for key in ("hint",) if key in error.details]
    if isinstance(matches := error.details.get("matches") or error.details.get("available_hashes"), list):
        extra.append(", ".join(map(str, matches)))
    return body(
        " ".join([_sentence(error.message), *map(_sentence, extra)]) if extra else error.message,
        error.http_status,
        param=error.param,
        code=_code(error.type),
    )


def response_of(error: MlxkError) -> JSONResponse:
    """Return the response for an error of ours."""
    headers = {"Retry-After": RETRY_AFTER} if isinstance(error, ServerBusyError | ServerStoppingError) else None
    return JSONResponse(of_error(error), error.http_status, headers)


def of_http(error: HTTPException) -> JSONResponse:
    """Return the response for what the router refuses: an unknown path, a wrong method."""
    return refusal(f"{error.detail}.", error.status_code, headers=error.headers)


def _sentence(text: str) -> str:
    """Return a text with an end, so that another sentence can follow; hints that are commands have none."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _code(kind: str) -> str:
    """`ModelUnhealthyError` → `model_unhealthy`, as codes are written."""
    name = kind.removesuffix("Error")
    return "invalid_value" if name == "Validation" else re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
