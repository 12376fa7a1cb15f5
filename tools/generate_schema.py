"""Write docs/json-api-schema.json, the JSON Schema of the API, from the types in mlxk2/spec.py.

python tools/generate_schema.py           write the file
python tools/generate_schema.py --check   write nothing; exit 1 when the file is out of date
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from mlxk2 import spec

PATH = Path(__file__).parent.parent / "docs" / "json-api-schema.json"

Schema = dict[str, Any]

_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null", dict: "object"}


def schema() -> Schema:
    """Return the schema of the envelope for all commands."""
    shapes = [shape for shape in vars(spec).values() if is_typeddict(shape)]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"mlxk2 JSON API {spec.JSON_API_SPEC_VERSION}",
        **_object(spec.Envelope),
        "allOf": [_outcome(), *(_data_of(command, data) for command, data in spec.DATA_OF_COMMAND.items())],
        "$defs": {shape.__name__: _object(shape) for shape in shapes if shape is not spec.Envelope},
    }


def _outcome() -> Schema:
    """Return the rule for both outcomes: an error has an error object; a success has data and no error."""
    return {
        "if": {"properties": {"status": {"const": "error"}}},
        "then": {"properties": {"error": _value(spec.Error)}},
        "else": {"properties": {"error": {"type": "null"}, "data": {"type": "object"}}},
    }


def _data_of(command: str, data: Any) -> Schema:
    """Return the schema of one command's data after a success."""
    return {
        "if": {"properties": {"status": {"const": "success"}, "command": {"const": command}}},
        "then": {"properties": {"data": _value(data)}},
    }


def _object(shape: Any) -> Schema:
    """Return the schema of a TypedDict; if it is not closed, it allows further keys."""
    hints = get_type_hints(shape, include_extras=True)
    return {
        "description": shape.__doc__,
        "type": "object",
        "properties": {name: _value(_unwrap(hint)) for name, hint in hints.items()},
        "required": [name for name, hint in hints.items() if get_origin(hint) is not NotRequired],
        "additionalProperties": shape not in spec.CLOSED,
    }


def _unwrap(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is NotRequired else hint


def _value(hint: Any) -> Schema:
    """Return the schema of any other type."""
    origin, parts = get_origin(hint), get_args(hint)
    if is_typeddict(hint):
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if origin is Annotated:
        return _value(parts[0]) | _constraint(parts[1])
    if origin in (Union, UnionType):
        return {"anyOf": [_value(part) for part in parts]}
    if origin is Literal:
        return {"enum": list(parts)}
    if origin is list:
        return {"type": "array", "items": _value(parts[0])}
    return {"type": _NAMES[origin or hint]}


def _constraint(constraint: spec.Pattern | spec.Minimum) -> Schema:
    if isinstance(constraint, spec.Pattern):
        return {"pattern": constraint.regex}
    return {"minimum": constraint.value}


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the file, and return the exit code."""
    parser = argparse.ArgumentParser(description="Generate docs/json-api-schema.json from mlxk2/spec.py.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the file is out of date")
    args = parser.parse_args(argv)
    text = json.dumps(schema(), indent=2) + "\n"
    if not args.check:
        PATH.write_text(text, encoding="utf-8")
        return 0
    if PATH.is_file() and PATH.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PATH.name} is out of date. To update it: python tools/generate_schema.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
