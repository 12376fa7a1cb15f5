"""The front matter of a model card: the YAML between the first two `---` lines of README.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import yaml

MAX_NESTING = 32
MAX_YAML = 1 << 16  # characters: the parser needs half a second for a megabyte

# The base loader makes text of every scalar: no dates, no numbers, nothing that a value could break.
_Loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class Card(NamedTuple):
    """What a card says of its model, by its keys; empty where it is silent or can't be read."""

    tags: tuple[str, ...] = ()
    library_name: str = ""
    pipeline_tag: str = ""


def parse(text: str) -> Card:
    """The card of a README; one without front matter, or with a damaged one, says nothing."""
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return Card()
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), 0)
    try:
        front = _load(_short(lines[1:end]))
    except (yaml.YAMLError, RecursionError, ValueError):
        return Card()
    return _card(front) if isinstance(front, dict) else Card()


def _short(lines: Sequence[str]) -> str:
    """The front matter; of a long one, which holds results of benchmarks, only the keys that are needed."""
    text = "\n".join(lines)
    if len(text) > MAX_YAML:
        text = "\n".join(_needed(lines))
    if len(text) > MAX_YAML:
        raise ValueError("too long")
    return text


def _needed(lines: Iterable[str]) -> Iterator[str]:
    """The lines of the keys that are needed, each with those below it that are no key: deeper ones, items, brackets."""
    is_needed = False
    for line in lines:
        if key := _key(line):
            is_needed = key in Card._fields
        if is_needed:
            yield line


def _key(line: str) -> str:
    """The key at the top level that a line begins with; empty where it is indented, an item, or the rest of a value."""
    key, colon, value = line.partition(":")
    is_key = colon and not value[:1].strip() and not key.startswith((" ", "\t", "-", "#", "[", "]", "{", "}"))
    return key.strip().strip("\"'") if is_key else ""


def _load(text: str) -> object:
    """The value of a YAML text; ValueError when it is nested too deeply: the loader recurses in C, unguarded."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_NESTING:
            raise ValueError("nested too deeply")
    return yaml.load(text, Loader=_Loader)


def _card(front: dict[Any, Any]) -> Card:
    tags = front.get("tags")
    listed = tags if isinstance(tags, list) else [tags]
    return Card(
        tags=tuple(tag for tag in listed if isinstance(tag, str)),
        library_name=_text(front.get("library_name")),
        pipeline_tag=_text(front.get("pipeline_tag")),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
