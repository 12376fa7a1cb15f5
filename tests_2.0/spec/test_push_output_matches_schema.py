"""The documents of `push`, which scripts of continuous integration read: the schema accepts only right ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.layouts import chat_model
from support.pushing import Pusher

Document = dict[str, Any]
Problems = Callable[[object], list[str]]
Path = tuple[str | int, ...]

pytestmark = pytest.mark.spec

SUMMARY = {"added": 1, "modified": 0, "deleted": 0}
COMMITTED: Document = {
    "repo_id": "org/model",
    "branch": "main",
    "commit_sha": "a" * 40,
    "commit_url": "https://hub.example/org/model/commit/" + "a" * 40,
    "repo_url": "https://hub.example/org/model",
    "uploaded_files_count": 1,
    "local_files_count": 3,
    "no_changes": False,
    "created_repo": True,
    "message": "Pushed: +1 ~0 -0",
    "experimental": True,
    "disclaimer": "Alpha.",
}
OPTIONAL: Document = {
    "hf_logs": ["a line"],
    "change_summary": SUMMARY,
    "workspace_health": {
        "files_count": 3,
        "total_bytes": 10,
        "config": {"exists": True, "valid_json": True, "path": "config.json"},
        "weights": {
            "count": 1,
            "formats": ["safetensors"],
            "index": {"has_index": True, "missing": ["model-00002-of-00002.safetensors"]},
            "pattern_complete": False,
        },
        "anomalies": [{"severity": "warning", "code": "no_readme", "message": "No README.", "path": None}],
        "healthy": False,
    },
    "dry_run": True,
    "dry_run_summary": SUMMARY,
    "would_create_repo": True,
    "would_create_branch": True,
    "added_files": ["a"],
    "deleted_files": ["b"],
}
DRY_RUN = OPTIONAL.keys() - {"hf_logs", "workspace_health"}
NULLABLE = ("commit_sha", "commit_url", "uploaded_files_count", "local_files_count", "message")


def _push(data: Document) -> Document:
    return {"status": "success", "command": "push", "data": copy.deepcopy(data), "error": None}


def _paths(value: object, start: Path = ()) -> Iterator[Path]:
    """Yield the path of every key at any depth."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield (*start, key)
            yield from _paths(child, (*start, key))
    if isinstance(value, list):
        for number, child in enumerate(value):
            yield from _paths(child, (*start, number))


def _parent(document: Any, path: Path) -> Any:
    for step in path[:-1]:
        document = document[step]
    return document


ALL = _push(COMMITTED | OPTIONAL)
DATA_PATHS = [("data", *path) for path in _paths(ALL["data"])]


@pytest.mark.parametrize("optional", [{}, *({key: value} for key, value in OPTIONAL.items())], ids=" ".join)
def test_optional_keys_may_be_missing(problems: Problems, optional: Document) -> None:
    assert problems(_push(COMMITTED | optional)) == []


@pytest.mark.parametrize("key", NULLABLE)
def test_unknown_values_may_be_null(problems: Problems, key: str) -> None:
    assert problems(_push(COMMITTED | {key: None})) == []


def test_an_unknown_number_of_changes_may_be_null(problems: Problems) -> None:
    assert problems(_push(COMMITTED | {"dry_run_summary": SUMMARY | {"modified": None}})) == []


@pytest.mark.parametrize("path", [p for p in DATA_PATHS if p[1:] != (p[1],) or p[1] not in OPTIONAL], ids=str)
def test_a_missing_key_is_refused(problems: Problems, path: Path) -> None:
    document = copy.deepcopy(ALL)
    del _parent(document, path)[path[-1]]
    assert problems(document)


@pytest.mark.parametrize("path", DATA_PATHS, ids=str)
def test_a_value_of_a_wrong_type_is_refused(problems: Problems, path: Path) -> None:
    document = copy.deepcopy(ALL)
    _parent(document, path)[path[-1]] = [[]]
    assert problems(document)


@pytest.mark.parametrize("key", ["uploaded_files_count", "local_files_count"])
def test_a_negative_count_is_refused(problems: Problems, key: str) -> None:
    assert problems(_push(COMMITTED | {key: -1}))


def test_the_output_of_push_conforms_to_the_schema(pusher: Pusher, problems: Problems) -> None:
    pusher.write(chat_model())
    expected = [
        (("--check-only",), {"workspace_health"}),
        (("--dry-run",), DRY_RUN),
        (("--private", "--create"), {"hf_logs", "change_summary"}),
        (("--private",), {"hf_logs"}),
    ]
    for words, optional in expected:
        document = pusher.run(*words, "--json").json
        assert problems(document) == [], words
        assert document["data"].keys() - COMMITTED.keys() == optional, words


def test_the_specification_shows_every_way_to_push(examples: list[Document]) -> None:
    shown = [example["data"] for example in examples if (example["command"], example["status"]) == ("push", "success")]
    assert [data for data in shown if data["commit_sha"]]
    assert [data for data in shown if data["no_changes"]]
    assert [data for data in shown if data.get("dry_run")]
    assert [data for data in shown if "workspace_health" in data]
