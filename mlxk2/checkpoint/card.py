"""The front matter of a model card: the YAML between the first two `---` lines of README.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import yaml

MAX_NESTING = 32
MAX_YAML = 1 << 16  # Characters; the parser needs half a second for a megabyte.

# The base loader returns every scalar as text. Converting to dates or numbers could fail on a wrong value.
_Loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class Card(NamedTuple):
    """The fields of a model card that mlxk2 uses; a field is empty if the card lacks it or can't be read."""

    tags: tuple[str, ...] = ()
    library_name: str = ""
    pipeline_tag: str = ""


def parse(text: str) -> Card:
    """Return the card of a README; return an empty card if the front matter is missing or damaged."""
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return Card()
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), 0)
    lines = lines[1:end]
    if len("\n".join(lines)) > MAX_YAML:
        # Long front matter is mostly results of benchmarks.
        lines = _lines_of_fields(lines)
    try:
        front = _load("\n".join(lines))
    except (yaml.YAMLError, RecursionError, ValueError):
        return Card()
    if not isinstance(front, dict):
        return Card()
    tags = front.get("tags")
    return Card(
        tags=tuple(tag for tag in (tags if isinstance(tags, list) else [tags]) if isinstance(tag, str)),
        library_name=_text(front.get("library_name")),
        pipeline_tag=_text(front.get("pipeline_tag")),
    )


def _lines_of_fields(lines: Sequence[str]) -> list[str]:
    """Return the lines of the fields of `Card`: each key, and the lines of its value below it."""
    found = []
    is_of_field = False
    for line in lines:
        key, colon, value = line.partition(":")
        name = key.strip().strip("\"'")
        is_inner = key.startswith((" ", "\t", "-", "#", "[", "]", "{", "}"))
        if name and colon and not value[:1].strip() and not is_inner:
            is_of_field = name in Card._fields
        if is_of_field:
            found.append(line)
    return found


def _load(text: str) -> object:
    """Return the value of a YAML text; raise ValueError when it is too long or nested too deeply.

    The loader has no limit of its own: it recurses in C, and deep nesting would crash the process.
    """
    if len(text) > MAX_YAML:
        raise ValueError("too long")
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_NESTING:
            raise ValueError("nested too deeply")
    return yaml.load(text, Loader=_Loader)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
