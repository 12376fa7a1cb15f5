"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

Invalid bodies get the same messages and codes as from OpenAI's API. A field is named like `messages[0].content`; see
https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import pydantic
from starlette.responses import JSONResponse, Response

from mlxk2.errors import MlxkError, ServerBusyError, ServerStoppingError
from mlxk2.formatting import cut
from mlxk2.server.api import RequestError
from mlxk2.server.http.refusals import RETRY_AFTER, Refusal

# Messages quote what clients sent, which can be very long.
MAX_MESSAGE_CHARACTERS = 1000
MAX_VALUE_CHARACTERS = 100
_CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}

# One entry of a pydantic.ValidationError; its keys depend on its type.
Fault = Mapping[str, Any]

# The expected type of a field, by the type of the fault.
_EXPECTED = {
    "bool_type": "a boolean",
    "dict_type": "an object",
    "float_type": "a decimal",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "list_type": "an array",
    "model_type": "an object",
    "string_type": "a string",
}
_TYPES = {
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}
_EMPTY = "Invalid '{param}': empty {what}. Expected {a} {what} with minimum length 1, but got an empty {what} instead."
_RANGE = "Invalid '{{param}}': {{number}} {0} value. Expected a value {1}, but got {{given}} instead."
# The message and the code for each other type of fault.
_WORDS: Mapping[str, tuple[str, str]] = {
    "missing": ("Missing required parameter: '{param}'.", "missing_required_parameter"),
    "unsupported": ("Unsupported parameter: '{param}' is not supported by this server yet.", "unsupported_parameter"),
    "literal_error": ("Invalid value: {given}. Supported values are: {expected}.", "invalid_value"),
    "greater_than_equal": (_RANGE.format("below minimum", ">= {ge}"), "{number}_below_min_value"),
    "less_than_equal": (_RANGE.format("above maximum", "<= {le}"), "{number}_above_max_value"),
    "finite_number": ("Invalid '{param}': NaN and Infinity are no JSON.", "invalid_value"),
    "too_short": (_EMPTY.replace("{a}", "an").replace("{what}", "array"), "empty_array"),
    "string_too_short": (_EMPTY.replace("{a}", "a").replace("{what}", "string"), "empty_string"),
    "string_too_long": (
        "Invalid '{param}': string too long. Expected a string with maximum length {max_length}.",
        "string_above_max_length",
    ),
    "too_long": (
        "Invalid '{param}': array too long. Expected an array with maximum length {max_length}, "
        "but got an array with length {actual_length} instead.",
        "array_above_max_length",
    ),
    "too_many_properties": (
        "Invalid '{param}': too many properties. Expected an object with at most {max_length} properties.",
        "object_above_max_properties",
    ),
}


class ErrorDetail(pydantic.BaseModel):
    """The message of an error, and the field of the request that is wrong, or null."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str | None


class Error(pydantic.BaseModel):
    """OpenAI's error body."""

    error: ErrorDetail


def render(fields: Collection[str], error: RequestError) -> Response:
    """Return the response for an error; `fields` are the names of all fields of all bodies."""
    if isinstance(error, MlxkError):
        headers = {"Retry-After": RETRY_AFTER} if isinstance(error, ServerBusyError | ServerStoppingError) else None
        return JSONResponse(error_body(error), error.http_status, headers)
    if isinstance(error, Refusal):
        return JSONResponse(_body(error.message, error.status, code=error.code), error.status, error.headers)
    return JSONResponse(_describe_invalid(fields, error), 400)


def error_body(error: MlxkError) -> dict[str, Any]:
    """Return the error body of an MlxkError; its hint and its matches become part of the message."""
    extra = [str(error.details[key]) for key in ("hint",) if key in error.details]
    if isinstance(matches := error.details.get("matches") or error.details.get("available_hashes"), list):
        extra.append(", ".join(map(str, matches)))
    # `ModelUnhealthyError` has the code `model_unhealthy`.
    name = error.type.removesuffix("Error")
    code = "invalid_value" if name == "Validation" else re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    message = " ".join([_sentence(error.message), *map(_sentence, extra)]) if extra else error.message
    return _body(message, error.http_status, param=error.param, code=code)


def _body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    message = cut(message, MAX_MESSAGE_CHARACTERS)
    return {"error": {"message": message, "type": kind, "param": param, "code": code or _CODES.get(status)}}


def _sentence(text: str) -> str:
    """Return a text with a full stop at its end, so that another sentence can follow; some hints have none."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _describe_invalid(fields: Collection[str], error: pydantic.ValidationError) -> dict[str, Any]:
    """Return the error body for an invalid request body: its first fault, and the field with this fault."""
    # Drop the steps of a path that are pydantic's names for the types of a union.
    faults = [
        {**fault, "loc": tuple(step for step in fault["loc"] if isinstance(step, int) or step in fields)}
        for fault in error.errors(include_url=False)
    ]
    fault, expected = _find_fault(faults)
    if fault["type"] == "json_invalid":
        message = f"We could not parse the JSON body of your request: {fault['ctx']['error']}."
        return _body(message, 400, code="invalid_json")
    # A fault about several fields has the name of one of them.
    named = fault.get("ctx", {}).get("name")
    path = [*fault["loc"], named] if named else fault["loc"]
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".") or None
    if expected:
        some = "one of " if len(expected) > 1 else ""
        field = f"'{param}'" if param else "the body"
        given = _TYPES.get(type(fault["input"]), "something else")
        message = f"Invalid type for {field}: expected {some}{' or '.join(expected)}, but got {given} instead."
        return _body(message, 400, param=param, code="invalid_type")
    message, code = _describe_value(param, fault)
    return _body(message, 400, param=param, code=code)


def _find_fault(faults: Sequence[Fault]) -> tuple[Fault, list[str]]:
    """Return the most precise fault of the first wrong field, and the expected types if its type is wrong.

    A field with several allowed types has a fault for each type. A wrong value is more precise than a wrong type, and a
    fault in a part is more precise than one in the whole.
    """
    same_field = [fault for fault in faults if fault["loc"][:1] == faults[0]["loc"][:1]]
    best = max(same_field, key=lambda fault: (fault["type"] not in _EXPECTED, len(fault["loc"])))
    alike = [fault for fault in same_field if fault["type"] in _EXPECTED and fault["loc"] == best["loc"]]
    return best, list(dict.fromkeys(_EXPECTED[fault["type"]] for fault in alike)) if best in alike else []


def _describe_value(param: str | None, fault: Fault) -> tuple[str, str]:
    """Return the message and the code for a wrong value of the right type."""
    context = fault.get("ctx", {})
    kind = "too_many_properties" if context.get("field_type") == "Dictionary" else fault["type"]
    if kind not in _WORDS:
        return fault["msg"], "invalid_value"
    number = "decimal" if any(isinstance(limit, float) for limit in context.values()) else "integer"
    limits = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in context.items()}
    value = fault["input"]
    is_scalar = isinstance(value, str | int | float)
    given = cut(repr(value), MAX_VALUE_CHARACTERS) if is_scalar else _TYPES.get(type(value), "something else")
    values = {"param": param, "given": given, "number": number, **limits}
    message, code = _WORDS[kind]
    return message.format_map(values), code.format_map(values)
