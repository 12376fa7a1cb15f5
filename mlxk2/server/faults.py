"""Every fault as OpenAI's error body: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pydantic
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from mlxk2.errors import MlxkError, ServerBusyError, ServerStoppingError

# Seconds after which a refused client may try again.
RETRY_AFTER = "1"
_CODES = {401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return the error body of a status."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
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
        " ".join([error.message, *extra]),
        error.http_status,
        param=error.param,
        code=_code(error.type),
    )


def response_of(error: MlxkError) -> JSONResponse:
    """Return the response for an error of ours."""
    headers = {"Retry-After": RETRY_AFTER} if isinstance(error, ServerBusyError | ServerStoppingError) else None
    return JSONResponse(of_error(error), error.http_status, headers)


def of_invalid(error: pydantic.ValidationError) -> dict[str, Any]:
    """Return the body for a request that breaks the protocol: the first fault, and the field it is in."""
    first = _deepest(error)
    param = ".".join(map(str, _path(first["loc"]))) or first.get("ctx", {}).get("name")
    message = first["msg"] if not param or param in first["msg"] else f"{param}: {first['msg']}"
    code = "invalid_json" if first["type"] == "json_invalid" else "invalid_value"
    return body(message, 400, param=param, code=code)


def of_http(error: HTTPException) -> JSONResponse:
    """Return the response for what the router refuses: an unknown path, a wrong method."""
    return refusal(f"{error.detail}.", error.status_code, headers=error.headers)


def _deepest(error: pydantic.ValidationError) -> Any:
    """Return the fault that names the field best: of a value of several types, that of the type that came closest."""
    found = error.errors(include_url=False, include_input=False)
    return max((fault for fault in found if fault["loc"][:1] == found[0]["loc"][:1]), key=lambda f: len(f["loc"]))


def _path(location: tuple[int | str, ...]) -> list[int | str]:
    """Return a location without pydantic's names for the types of a union."""
    return [part for part in location if isinstance(part, int) or re.fullmatch(r"[a-z][a-z_]*", part)]


def _code(kind: str) -> str:
    """`ModelUnhealthyError` → `model_unhealthy`, as codes are written."""
    name = kind.removesuffix("Error")
    return "invalid_value" if name == "Validation" else re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
