"""The code, the schema and the specification agree: one version, the same fields, the same errors."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mlxk2 import errors
from mlxk2.spec import DATA_OF_COMMAND, JSON_API_SPEC_VERSION, Command

ROOT = Path(__file__).parents[2]

Schema = dict[str, Any]

pytestmark = pytest.mark.spec


class Field(NamedTuple):
    """The description of a field: whether it is always present, its basic type, its words, whether it may be null."""

    always: bool
    type: str
    words: frozenset[str]
    nullable: bool


def _sections(text: str) -> dict[str, str]:
    """Return the text under each heading, up to the next one."""
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _described(section: str) -> dict[str, Field]:
    """Return the fields in a section's table."""
    rows = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+?) \| .+ \|$", section, re.MULTILINE)
    return {path: Field(present == "always", *_said(type)) for path, type, present in rows}


def _said(type: str) -> tuple[str, frozenset[str], bool]:
    words = frozenset(re.findall(r"`([^`]+)`", type))
    nullable = type.endswith(" or null")
    plain = type.removesuffix(" or null").strip("[").split()[0]
    return ("array" if plain == "array" else "text" if words else plain.replace("model", "object")), words, nullable


def _fields(schema: Schema, shape: Schema, start: str = "") -> Iterator[tuple[str, Field]]:
    """Yield the fields of an object and of the objects in it, but not of a model object, which has its own table."""
    for name, value in shape["properties"].items():
        inner, nullable = _without_null(value)
        item, ending = (inner["items"], "[]") if inner.get("type") == "array" else (inner, "")
        yield start + name, Field(name in shape["required"], _basic_type(inner), _enum(item), nullable)
        if "$ref" in item and not item["$ref"].endswith(("/ModelObject", "/Error")):
            yield from _fields(schema, schema["$defs"][item["$ref"].rpartition("/")[2]], f"{start}{name}{ending}.")


def _without_null(value: Schema) -> tuple[Schema, bool]:
    choices = value.get("anyOf", [value])
    return choices[0], {"type": "null"} in choices


def _basic_type(value: Schema) -> str:
    return "object" if "$ref" in value else "text" if "enum" in value else str(value["type"])


def _enum(value: Schema) -> frozenset[str]:
    return frozenset(value.get("enum", ()))


def _error_types() -> Iterator[type[errors.MlxkError]]:
    return (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MlxkError))


def test_the_schema_is_up_to_date_with_the_types() -> None:
    command = [sys.executable, "tools/generate_schema.py", "--check"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_the_check_finds_an_outdated_schema(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "docs").mkdir()
    tool = tmp_path / "tools" / "generate_schema.py"
    tool.write_bytes((ROOT / "tools" / "generate_schema.py").read_bytes())
    for arguments, code in ((["--check"], 1), ([], 0), (["--check"], 0)):
        assert subprocess.run([sys.executable, tool, *arguments], stderr=subprocess.PIPE).returncode == code
    (tmp_path / "docs" / "json-api-schema.json").write_text("{}\n")
    assert subprocess.run([sys.executable, tool, "--check"], stderr=subprocess.PIPE).returncode == 1


def test_code_schema_and_specification_have_the_same_version(
    schema: Schema, specification: str, examples: list[Schema]
) -> None:
    assert schema["title"] == f"mlxk2 JSON API {JSON_API_SPEC_VERSION}"
    assert specification.startswith(f"# JSON API {JSON_API_SPEC_VERSION}\n")
    (version,) = (e["data"] for e in examples if (e["command"], e["status"]) == ("version", "success"))
    assert version["json_api_spec_version"] == JSON_API_SPEC_VERSION
    assert set(re.findall(r"(?<![\w.])0\.\d+\.\d+(?![\w.]*\d)", specification)) == {JSON_API_SPEC_VERSION, "0.1.5"}


@pytest.mark.parametrize("command", DATA_OF_COMMAND)
def test_every_field_of_a_command_is_documented_correctly(schema: Schema, specification: str, command: Command) -> None:
    shape = schema["$defs"][DATA_OF_COMMAND[command].__name__]
    assert _described(_sections(specification)[command]) == dict(_fields(schema, shape))


@pytest.mark.parametrize(("heading", "name"), [("The model object", "ModelObject"), ("Errors", "Error")])
def test_every_field_of_a_shared_object_is_documented_correctly(
    schema: Schema, specification: str, heading: str, name: str
) -> None:
    assert _described(_sections(specification)[heading]) == dict(_fields(schema, schema["$defs"][name]))


def test_every_field_of_the_envelope_is_documented_correctly(schema: Schema, specification: str) -> None:
    assert _described(_sections(specification)["The envelope"]) == dict(_fields(schema, schema))


def test_every_error_is_documented_with_its_exit_code(specification: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| .+ \|$", specification, re.MULTILINE)
    described = {type: int(code) for type, code in rows}
    assert len(described) == len(rows)
    assert {kind.type: kind.exit_code for kind in _error_types()}.items() <= described.items()


def test_each_exit_code_is_documented(specification: str) -> None:
    described = set(re.findall(r"^\| (\d+) \|", _sections(specification)["Exit codes"], re.MULTILINE))
    assert described == {"0", *(str(kind.exit_code) for kind in _error_types())}


def test_closed_objects_allow_no_further_keys(schema: Schema) -> None:
    closed = {name for name, shape in schema["$defs"].items() if not shape["additionalProperties"]}
    entries = {"HealthEntry", "HealthSummary", "FileEntry"}
    assert closed == {"ModelObject", "VersionData", "ListData", "HealthData"} | entries
    assert schema["additionalProperties"] is False
