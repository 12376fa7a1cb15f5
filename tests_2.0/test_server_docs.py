"""docs/server.md agrees with the code: its tables match, and its examples run and print what it shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel
from support.application import DOCUMENTED
from support.serving import Server

from mlxk2 import errors
from mlxk2.server.openai.chat import ChatBody, Message, TextPart
from mlxk2.server.openai.completions import CompletionBody
from mlxk2.server.openai.errors import error_body
from mlxk2.server.openai.fields import UNSUPPORTED_FIELDS, StreamOptions

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
HERE = "127.0.0.1:8000"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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
    (listed,) = re.findall(r"^Refused by name.*?:\n\n(.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
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


# --------------------------------------------------------------------------------------------------------- examples


class Example(NamedTuple):
    """A program for a shell or for Python, and its output."""

    language: str
    program: str
    output: str


def examples() -> list[Example]:
    """Return the examples of the page except those that start a server or change its settings."""
    blocks = _BLOCK.findall(PAGE)
    found = []
    for (language, block), (_, following) in zip(blocks, [*blocks, ("", "")][1:], strict=True):
        if language == "console":
            command, _, output = block.removeprefix("$ ").partition("\n")
            while command.endswith("\\"):
                more, _, output = output.partition("\n")
                command += "\n" + more
            found += [] if command.startswith("mlxk2") else [Example("console", command, output)]
        elif language == "python":
            found.append(Example("python", block, following))
    return found


def comparable(text: str) -> Any:
    """Return an output without parts that differ from run to run and with the parts of a stream joined."""
    text = re.sub(r'"(id)": ?"(chatcmpl|cmpl)-\w+"', r'"\1":"\2"', text.strip())
    text = re.sub(r'"created": ?\d+', '"created":0', text)
    text = re.sub(r'"version": ?"[^"]+"', '"version":""', text)
    text = re.sub(r'"cached_tokens": ?\d+', '"cached_tokens":0', text)
    text = re.sub(r'("\w+_(?:n|ms|per_second)"): ?[^,}]+', r"\1:0", text)
    if text.startswith("data: "):
        return _stream(text)
    try:
        return json.loads(text, parse_float=lambda number: round(float(number), 2))
    except ValueError:
        return re.sub(r"HTTP/1.1|\r", "", text)


def _stream(text: str) -> list[Any]:
    parts: list[Any] = []
    for line in filter(None, text.splitlines()):
        data = line.removeprefix("data: ")
        event: Any = data if data == "[DONE]" else json.loads(data)
        delta = event["choices"][0]["delta"] if event != "[DONE]" and event["choices"] else {}
        before = parts[-1]["choices"][0]["delta"] if parts and parts[-1]["choices"] else {}
        if list(delta) == list(before) == ["content"]:
            before["content"] += delta["content"]
        else:
            parts.append(event)
    return parts


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server("--model", "demo", home=tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.mark.e2e
@pytest.mark.parametrize("number", range(len(examples())))
def test_each_example_prints_what_the_page_shows(server: Server, number: int) -> None:
    example = examples()[number]
    program = example.program.replace(HERE, f"127.0.0.1:{server.port}")
    interpreter = [sys.executable] if example.language == "python" else ["bash", "-euo", "pipefail"]
    done = subprocess.run(
        [*interpreter, "-c", program],
        env={"PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert comparable(done.stdout) == comparable(example.output)


def test_the_page_has_examples_for_the_shell_and_for_python() -> None:
    assert {example.language for example in examples()} == {"console", "python"}
    assert all(example.output for example in examples())
