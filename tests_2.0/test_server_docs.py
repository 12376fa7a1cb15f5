"""The tables of docs/server.md match the fields and errors of the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from support.application import DOCUMENTED
from support.documents import DOCUMENTS, ROOT

from mlxk2 import errors
from mlxk2.server.openai.chat import ChatBody, Message, TextPart
from mlxk2.server.openai.completions import CompletionBody
from mlxk2.server.openai.errors import error_body
from mlxk2.server.openai.fields import UNSUPPORTED_FIELDS, StreamOptions

PAGE = DOCUMENTS["docs/server.md"]


# ----------------------------------------------------------------------------------------------------------- fields


def rows(kind: type[BaseModel]) -> list[str]:
    """Return the rows of a table of fields: name, type with its limits, meaning."""
    schema = kind.model_json_schema(ref_template="{model}")
    required = schema.get("required", ())
    return [
        f"| `{name}` | {_type(field)}{', required' if name in required else ''} | {field['description']} |"
        for name, field in schema["properties"].items()
    ]


def _type(field: Any) -> str:
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(part) for part in field["anyOf"] if part.get("type") != "null"))
    if "$ref" in field:
        return f"[{field['$ref']}](#{field['$ref'].lower()})"
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field["type"] == "array":
        return f"array of {_type(field['items'])}{_size(field)}"
    if field["type"] == "object":
        values = field["additionalProperties"]
        return f"object{'' if values is True else f' of {_type(values)}'}{_size(field)}"
    name = "text" if field["type"] == "string" else field["type"]
    return f"{name}{_range(field)}{_length(field)}"


def _size(field: Any) -> str:
    most = field.get("maxItems", field.get("maxProperties"))
    return f", at most {most}" if most is not None else ""


def _length(field: Any) -> str:
    return f" of at most {field['maxLength']} characters" if "maxLength" in field else ""


def _range(field: Any) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    if high is None or high > 1 << 62:
        return ""
    return f" from {low:g}" if high == (1 << 31) - 1 else f" from {low:g} to {high:g}"


def tables() -> Iterator[list[str]]:
    """Yield the tables of fields in the order of the page."""
    both = set(ChatBody.model_fields) & set(CompletionBody.model_fields) - {"logprobs"}
    yield [row for row in rows(ChatBody) if row.split("`")[1] not in both]
    yield rows(Message)
    yield rows(TextPart)
    yield [row for row in rows(CompletionBody) if row.split("`")[1] not in both]
    yield [row for row in rows(ChatBody) if row.split("`")[1] in both]
    yield rows(StreamOptions)


@pytest.mark.parametrize("number", range(6))
def test_the_tables_of_fields_match_the_code(number: int) -> None:
    table = list(tables())[number]
    found = re.findall(r"^\| Field \| Type \| Meaning \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert len(found) == 6
    assert found[number].splitlines() == table


def test_all_refused_fields_are_listed() -> None:
    (listed,) = re.findall(r"is refused with status 400 and the field's name:\n\n(.*?)\n\n", PAGE, re.DOTALL)
    assert re.findall(r"`(\w+)`", listed) == sorted(UNSUPPORTED_FIELDS)


# ----------------------------------------------------------------------------------------------------------- errors


def all_errors() -> Iterator[type[errors.MlxkError]]:
    """Yield all classes of errors."""
    left = [errors.MlxkError]
    while left:
        kind = left.pop()
        yield kind
        left += kind.__subclasses__()


def test_every_documented_error_exists_in_the_code() -> None:
    sources = "".join(path.read_text() for path in sorted((ROOT / "mlxk2" / "server").rglob("*.py")))
    numbers = "".join(sources.replace("{number}", number) for number in ("integer", "decimal"))
    raised = {(str(kind.http_status), _code(kind)) for kind in all_errors()}
    for status, code in DOCUMENTED:
        assert f'"{code}"' in numbers or (status, code) in raised, code


def _code(kind: type[errors.MlxkError]) -> str:
    error = errors.MlxkError("x")
    error.type = kind.type
    return str(error_body(error)["error"]["code"])


def test_each_error_is_documented_once() -> None:
    # `error_of` fails in other tests if an error is not documented.
    assert len(DOCUMENTED) == len(set(DOCUMENTED)) > 25
