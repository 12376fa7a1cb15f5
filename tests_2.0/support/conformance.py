"""Check data against the types of the JSON API: closed objects, required keys, literals, patterns, bounds."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, NotRequired, Protocol, Union, get_args, get_origin, get_type_hints

from jsonschema import Draft202012Validator

from mlxk2 import spec

SCHEMA = Path(__file__).parents[2] / "docs" / "json-api-schema.json"


def assert_conforms(value: object, shape: Any) -> None:
    """Fail unless the value conforms to the type, to the last key."""
    problems = list(differences(value, shape, "data"))
    assert not problems, problems


def assert_envelope(document: Any, command: str, status: str = "success") -> None:
    """Fail unless the document is an envelope of this command with the data of its type."""
    assert_conforms(document, spec.Envelope)
    assert (document["command"], document["status"]) == (command, status)
    if status == "success":
        assert document["error"] is None
        assert_conforms(document["data"], spec.DATA_OF_COMMAND[document["command"]])
    else:
        assert document["error"] is not None


@cache
def validator() -> Draft202012Validator:
    """Return the validator of the published schema."""
    return Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


class Ended(Protocol):
    """The outcome of a run of the program, in this process or in another one."""

    @property
    def code(self) -> int:
        """Return the exit code."""

    @property
    def json(self) -> Any:
        """Return the one JSON document on stdout."""


def data_of(result: Ended, command: str, *, code: int = 0) -> Any:
    """Return the data of a result's envelope, after a check of the envelope against this and the previous API."""
    assert result.code == code, result
    document = result.json
    validator().validate(document)
    assert_envelope(document, command, "success" if code == 0 else "error")
    return document["data"]


def error_of(result: Ended, command: str, *, code: int = 1) -> Any:
    """Return the error of a result's envelope, with the envelope's data as `data`."""
    data = data_of(result, command, code=code)
    return {**result.json["error"], "data": data}


def differences(value: object, shape: Any, where: str) -> Iterator[str]:
    """Yield every difference between a value and its type."""
    origin = get_origin(shape)
    if origin is typing.Annotated:
        yield from _annotated(value, shape, where)
    elif typing.is_typeddict(shape):
        yield from _typed_dict(value, shape, where)
    elif origin is list:
        yield from _list(value, shape, where)
    elif not _is_one(value, shape, where):
        yield f"{where}: {value!r} is no {shape}"


def _is_one(value: object, shape: Any, where: str) -> bool:
    if get_origin(shape) in (Union, types.UnionType):
        return any(not list(differences(value, choice, where)) for choice in get_args(shape))
    if get_origin(shape) is Literal:
        return value in get_args(shape)
    if shape is Any:
        return True
    plain = get_origin(shape) or (type(None) if shape is None else shape)
    if isinstance(value, bool):
        return plain is bool
    return isinstance(value, (int, float) if plain is float else plain)


def _annotated(value: object, shape: Any, where: str) -> Iterator[str]:
    plain, *rules = get_args(shape)
    yield from differences(value, plain, where)
    for rule in rules:
        if isinstance(rule, spec.Pattern) and not re.search(rule.regex, str(value)):
            yield f"{where}: {value!r} does not match {rule.regex}"
        if isinstance(rule, spec.Minimum) and isinstance(value, int) and value < rule.value:
            yield f"{where}: {value} is less than {rule.value}"


def _list(value: object, shape: Any, where: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{where}: {value!r} is no list"
        return
    for number, item in enumerate(value):
        yield from differences(item, get_args(shape)[0], f"{where}[{number}]")


def _typed_dict(value: object, shape: Any, where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where}: {value!r} is no object"
        return
    fields = get_type_hints(shape, include_extras=True)
    for name, field in fields.items():
        optional = get_origin(field) is NotRequired
        if name in value:
            yield from differences(value[name], get_args(field)[0] if optional else field, f"{where}.{name}")
        elif not optional:
            yield f"{where}: no {name}"
    if shape in spec.CLOSED and (further := set(value) - set(fields)):
        yield f"{where}: further keys {further}"
