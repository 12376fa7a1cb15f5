"""The JSON API 0.1.5 as scripts know it: its objects, their keys and kinds of values, and which were closed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlxk2 import spec

Kind = Callable[[object], bool]


@dataclass(frozen=True)
class Shape:
    """An object of the API 0.1.5: the kinds of its keys, the optional keys, and whether further keys are forbidden."""

    kinds: dict[str, Kind]
    optional: frozenset[str] = frozenset()
    closed: bool = False

    def __call__(self, value: object) -> bool:
        """Return whether a value has this shape."""
        if not isinstance(value, dict) or self.kinds.keys() - value.keys() - self.optional:
            return False
        if self.closed and value.keys() - self.kinds.keys():
            return False
        return all(kind(value[key]) for key, kind in self.kinds.items() if key in value)


def _text(value: object) -> bool:
    return isinstance(value, str)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _integer(value: object) -> bool:
    return isinstance(value, int) and not _flag(value)


def _number(value: object) -> bool:
    return isinstance(value, float) or _integer(value)


def _count(value: object) -> bool:
    return isinstance(value, int) and not _flag(value) and value >= 0


def _object(value: object) -> bool:
    return isinstance(value, dict)


def _like(pattern: str) -> Kind:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _one_of(words: str) -> Kind:
    return lambda value: value in words.split()


def _or_null(kind: Kind) -> Kind:
    return lambda value: value is None or kind(value)


def _array(kind: Kind) -> Kind:
    return lambda value: isinstance(value, list) and all(map(kind, value))


_HEALTH = _one_of("healthy unhealthy")
_MODEL_KINDS: dict[str, Kind] = {
    "name": _text,
    "hash": _or_null(_like("[A-Za-z0-9]{40}")),
    "size_bytes": _count,
    "last_modified": _like(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"),
    "framework": _one_of("MLX GGUF PyTorch Unknown"),
    "model_type": _one_of("chat embedding base unknown"),
    "capabilities": _array(_one_of("text-generation chat embeddings completion")),
    "health": _HEALTH,
    "runtime_compatible": _flag,
    "reason": _or_null(_text),
    "cached": _flag,
}
_MODEL = Shape(_MODEL_KINDS, frozenset({"reason"}), closed=True)
_FILE = Shape({"name": _text, "size": _text, "type": _text}, closed=True)
_ENTRY = Shape({"name": _text, "status": _HEALTH, "reason": _text}, closed=True)
_SUMMARY = Shape(dict.fromkeys(("total", "healthy_count", "unhealthy_count"), _count), closed=True)
_PUSH_KINDS: dict[str, Kind] = {
    "repo_id": _text,
    "branch": _text,
    "repo_url": _text,
    "commit_sha": _or_null(_text),
    "uploaded_files_count": _or_null(_count),
    "experimental": _flag,
    "disclaimer": _text,
}
_RUN_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("model", "prompt", "response"), _text),
    **{"tokens_generated": _integer, "generation_time_s": _number},
}
_DATA: dict[spec.Command, Shape] = {
    "version": Shape({"cli_version": _text, "json_api_spec_version": _like(r"\d+\.\d+\.\d+")}, closed=True),
    "list": Shape({"models": _array(_MODEL), "count": _count}, closed=True),
    "show": Shape(
        {"model": _MODEL, "metadata": _or_null(_object), "files": _array(_FILE), "config": _or_null(_object)},
        frozenset({"metadata", "files", "config"}),
    ),
    "health": Shape({"healthy": _array(_ENTRY), "unhealthy": _array(_ENTRY), "summary": _SUMMARY}, closed=True),
    "pull": Shape(
        {"download_status": _text, "message": _text, "model": _or_null(_text), "expanded_name": _or_null(_text)},
        frozenset({"model", "expanded_name"}),
    ),
    "rm": Shape({"action": _text, "model": _or_null(_text), "message": _text}, frozenset({"model", "message"})),
    "push": Shape(_PUSH_KINDS, frozenset({"commit_sha", "uploaded_files_count", "experimental", "disclaimer"})),
    "run": Shape(_RUN_KINDS, frozenset(_RUN_KINDS)),
}
_ERROR = Shape(
    {"type": _text, "message": _text, "matches": _array(_text), "available_hashes": _array(_text)},
    frozenset({"type", "message", "matches", "available_hashes"}),
)
_ENVELOPE = Shape(
    {
        "status": _one_of("success error"),
        "command": _one_of("list show health pull rm clone version push run server"),
        "data": _or_null(_object),
        "error": _or_null(_ERROR),
        "api_version": _like(r"json-\d+\.\d+\.\d+"),
    },
    frozenset({"api_version"}),
    closed=True,
)

SHAPES: dict[str, Shape] = {
    **{"ModelObject": _MODEL, "FileEntry": _FILE, "HealthEntry": _ENTRY, "HealthSummary": _SUMMARY},
    **{spec.DATA_OF_COMMAND[command].__name__: shape for command, shape in _DATA.items()},
}
"""The objects of the API 0.1.5, by the names that their types have today."""


NEW_COMMANDS = {"completion"}
"""Commands that the API 0.1.5 did not have: no script for it can ask for them."""


def is_as_before(document: Any) -> bool:
    """Return whether a strict reader of the API 0.1.5 accepts a document, or never asks for its command."""
    if document["command"] in NEW_COMMANDS:
        return True
    if not _ENVELOPE(document):
        return False
    shape = _DATA.get(document["command"])
    return document["status"] == "error" or shape is None or shape(document["data"])
