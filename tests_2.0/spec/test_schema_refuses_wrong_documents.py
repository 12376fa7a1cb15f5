"""The schema refuses wrong documents, each with one fault."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from support.previous_api import is_as_before

Document = dict[str, Any]
Problems = Callable[[object], list[str]]
Change = Callable[[Any], object]

pytestmark = pytest.mark.spec

ENVELOPE: list[tuple[str, Change]] = [
    ("a further key", lambda e: e.update(extra=1)),
    ("no status", lambda e: e.pop("status")),
    ("no command", lambda e: e.pop("command")),
    ("no data", lambda e: e.pop("data")),
    ("no error", lambda e: e.pop("error")),
    ("an unknown status", lambda e: e.update(status="ok")),
    ("an unknown command", lambda e: e.update(command="serve")),
    ("no command at all", lambda e: e.update(command=None)),
    ("a success without data", lambda e: e.update(data=None)),
    ("data that is no object", lambda e: e.update(data=[])),
    ("a success with an error", lambda e: e.update(error={"type": "x", "message": "y"})),
    ("an error without an error", lambda e: e.update(status="error")),
    ("an api_version of another form", lambda e: e.update(api_version="0.2.0")),
]
ERROR: list[tuple[str, Change]] = [
    ("no type", lambda e: e["error"].pop("type")),
    ("no message", lambda e: e["error"].pop("message")),
    ("a type that is no text", lambda e: e["error"].update(type=1)),
    ("matches that are no list", lambda e: e["error"].update(matches="org/model")),
    ("hashes that are no text", lambda e: e["error"].update(available_hashes=[1])),
    ("a hint that is no text", lambda e: e["error"].update(hint=None)),
    ("an error that is text", lambda e: e.update(error="it failed")),
    ("data that is no object", lambda e: e.update(data="partial")),
]
MODEL: list[tuple[str, Change]] = [
    ("a further key", lambda m: m.update(path="/models")),
    ("a short hash", lambda m: m.update(hash="73e3e38")),
    ("a hash with a dash", lambda m: m.update(hash="-" * 40)),
    ("an empty hash", lambda m: m.update(hash="")),
    ("a size below zero", lambda m: m.update(size_bytes=-1)),
    ("a size for people", lambda m: m.update(size_bytes="2.1GB")),
    ("a broken size", lambda m: m.update(size_bytes=1.5)),
    ("a size that is a truth", lambda m: m.update(size_bytes=True)),
    ("a time with an offset", lambda m: m.update(last_modified="2026-02-11T09:30:00+00:00")),
    ("a time with fractions", lambda m: m.update(last_modified="2026-02-11T09:30:00.5Z")),
    ("a date", lambda m: m.update(last_modified="2026-02-11")),
    ("a time in words", lambda m: m.update(last_modified="2 days ago")),
    ("another framework", lambda m: m.update(framework="JAX")),
    ("another type", lambda m: m.update(model_type="vision")),
    ("another capability", lambda m: m.update(capabilities=["vision"])),
    ("capabilities in one text", lambda m: m.update(capabilities="chat")),
    ("another health", lambda m: m.update(health="ok")),
    ("health as a truth", lambda m: m.update(health=True)),
    ("a runtime in words", lambda m: m.update(runtime_compatible="yes")),
    ("a runtime that is unknown", lambda m: m.update(runtime_compatible=None)),
    ("a reason that is no text", lambda m: m.update(reason=["a", "b"])),
]
DATA: list[tuple[str, str, Change]] = [
    ("version", "a further key", lambda d: d.update(python="3.11")),
    ("version", "a version of two numbers", lambda d: d.update(json_api_spec_version="0.2")),
    ("list", "a further key", lambda d: d.update(total_bytes=1)),
    ("list", "no count", lambda d: d.pop("count")),
    ("list", "a model that is a name", lambda d: d.update(models=["org/model"])),
    ("show", "no model", lambda d: d.pop("model")),
    ("show", "no metadata", lambda d: d.pop("metadata")),
    ("show", "a size in bytes", lambda d: d["files"][0].update(size=938)),
    ("show", "a file with a further key", lambda d: d["files"][0].update(sha="x")),
    ("show", "a file of another type", lambda d: d["files"][0].update(type="model")),
    ("show", "a config that is text", lambda d: d.update(config="{}")),
    ("show", "a context below zero", lambda d: d["metadata"].update(context_length=-1)),
    ("health", "a further key", lambda d: d.update(checked=2)),
    ("health", "no summary", lambda d: d.pop("summary")),
    ("health", "an entry without a reason", lambda d: d["healthy"][0].update(reason=None)),
    ("health", "an entry with a further key", lambda d: d["unhealthy"][0].update(hash=None)),
    ("health", "a summary with a further key", lambda d: d["summary"].update(skipped=0)),
    ("pull", "another status", lambda d: d.update(download_status="done")),
    ("pull", "a short commit", lambda d: d.update(commit_hash="73e3e38")),
    ("rm", "another action", lambda d: d.update(action="removed")),
    ("rm", "bytes below zero", lambda d: d.update(freed_bytes=-1)),
    ("rm", "locks in words", lambda d: d.update(locks_detected="yes")),
    ("clone", "another method", lambda d: d.update(method="hardlink")),
    ("clone", "another status", lambda d: d.update(clone_status="ok")),
    ("run", "no reasoning", lambda d: d.pop("reasoning")),
    ("run", "another reason for the end", lambda d: d.update(finish_reason="eos")),
    ("run", "a broken count", lambda d: d.update(tokens_generated=7.5)),
    ("run", "a time below zero", lambda d: d.update(generation_time_s=-0.1)),
    ("server", "a port in words", lambda d: d.update(port="8000")),
    ("server", "port zero", lambda d: d.update(port=0)),
]
OPEN: list[tuple[str, Change]] = [
    ("show", lambda d: d["metadata"].update(license="mit")),
    *((command, lambda d: d.update(news=1)) for command in ("show", "pull", "rm", "clone", "push", "run", "server")),
]


def _example(examples: list[Document], command: str, status: str = "success") -> Document:
    return copy.deepcopy(next(e for e in examples if (e["command"], e["status"]) == (command, status)))


@pytest.mark.parametrize(("fault", "change"), ENVELOPE)
@pytest.mark.parametrize("command", ["list", "push"])
def test_wrong_envelopes_are_refused(
    examples: list[Document], problems: Problems, command: str, fault: str, change: Change
) -> None:
    document = _example(examples, command)
    assert problems(document) == []
    change(document)
    assert problems(document), fault


@pytest.mark.parametrize(("fault", "change"), ERROR)
def test_wrong_error_envelopes_are_refused(
    examples: list[Document], problems: Problems, fault: str, change: Change
) -> None:
    document = _example(examples, "show", "error")
    change(document)
    assert problems(document), fault


@pytest.mark.parametrize(("fault", "change"), MODEL)
def test_wrong_model_objects_are_refused(
    examples: list[Document], problems: Problems, fault: str, change: Change
) -> None:
    listed, shown = _example(examples, "list"), _example(examples, "show")
    change(listed["data"]["models"][0])
    change(shown["data"]["model"])
    for document in (listed, shown):
        assert problems(document), fault
        assert not is_as_before(document), fault


def test_a_model_object_needs_all_its_keys(examples: list[Document], problems: Problems) -> None:
    for key in _example(examples, "list")["data"]["models"][0]:
        document = _example(examples, "list")
        del document["data"]["models"][0][key]
        assert problems(document), key


@pytest.mark.parametrize(("command", "fault", "change"), DATA)
def test_wrong_data_is_refused(
    examples: list[Document], problems: Problems, command: str, fault: str, change: Change
) -> None:
    document = _example(examples, command)
    assert problems(document) == []
    change(document["data"])
    assert problems(document), fault


@pytest.mark.parametrize(("command", "change"), OPEN)
def test_open_objects_may_gain_keys(examples: list[Document], problems: Problems, command: str, change: Change) -> None:
    document = _example(examples, command)
    change(document["data"])
    assert problems(document) == []
