"""What is wrong with a request's body, in OpenAI's words: its codes, and fields named as `messages[0].content`.

Wording: what OpenAI's API answers to the same bodies; https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic

from mlxk2.formatting import cut
from mlxk2.server.openai import errors
from mlxk2.server.openai.requests import FIELDS

# Pydantic's fault, whose keys depend on its type.
Fault = Mapping[str, Any]

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
_KINDS = {bool: "a boolean", int: "an integer", float: "a decimal number", str: "a string", list: "an array",
          dict: "an object", type(None): "null"}  # fmt: skip
_EMPTY = "Invalid '{param}': empty {what}. Expected {a} {what} with minimum length 1, but got an empty {what} instead."
_RANGE = "Invalid '{{param}}': {{number}} {0} value. Expected a value {1}, but got {{given}} instead."
# The message and the code of each other type of fault.
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
_LONGEST_VALUE = 100


def body_of(error: pydantic.ValidationError) -> dict[str, Any]:
    """Return OpenAI's error body for what breaks the protocol: the first fault, and the field it is in."""
    fault, expected = _closest(error.errors(include_url=False))
    if fault["type"] == "json_invalid":
        message = f"We could not parse the JSON body of your request: {fault['ctx']['error']}."
        return errors.body(message, 400, code="invalid_json")
    param = _param(fault)
    message, code = _of_type(param, fault, expected) if expected else _of_value(param, fault)
    return errors.body(message, 400, param=param, code=code)


def _closest(found: list[Any]) -> tuple[Fault, list[str]]:
    """Return the fault that names the first wrong field best, and what the field may be if its type is what is wrong.

    A value of several types has a fault for each: a wrong value is closer than a wrong type, a part than the whole.
    """
    same = [fault for fault in found if fault["loc"][:1] == found[0]["loc"][:1]]
    best = max(same, key=lambda fault: (fault["type"] not in _EXPECTED, len(_path(fault))))
    alike = [fault for fault in same if fault["type"] in _EXPECTED and _path(fault) == _path(best)]
    return best, list(dict.fromkeys(_EXPECTED[fault["type"]] for fault in alike)) if best in alike else []


def _path(fault: Fault) -> list[int | str]:
    """Return where a fault is, without pydantic's names for the types of a union."""
    return [part for part in fault["loc"] if isinstance(part, int) or part in FIELDS]


def _param(fault: Fault) -> str | None:
    """Return the field as OpenAI writes it; a fault between fields names one itself."""
    named = fault.get("ctx", {}).get("name")
    path = [*_path(fault), named] if named else _path(fault)
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".") or None


def _of_type(param: str | None, fault: Fault, expected: list[str]) -> tuple[str, str]:
    where = f"'{param}'" if param else "the body"
    what = " or ".join(expected)
    kind = _KINDS.get(type(fault["input"]), "something else")
    some = "one of " if len(expected) > 1 else ""
    return f"Invalid type for {where}: expected {some}{what}, but got {kind} instead.", "invalid_type"


def _of_value(param: str | None, fault: Fault) -> tuple[str, str]:
    context = fault.get("ctx", {})
    kind = "too_many_properties" if context.get("field_type") == "Dictionary" else fault["type"]
    if kind not in _WORDS:
        return fault["msg"], "invalid_value"
    number = "decimal" if any(isinstance(limit, float) for limit in context.values()) else "integer"
    limits = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in context.items()}
    values = {"param": param, "given": _shown(fault["input"]), "number": number, **limits}
    message, code = _WORDS[kind]
    return message.format_map(values), code.format_map(values)


def _shown(value: Any) -> str:
    if not isinstance(value, str | int | float):
        return _KINDS.get(type(value), "something else")
    return cut(repr(value), _LONGEST_VALUE)
