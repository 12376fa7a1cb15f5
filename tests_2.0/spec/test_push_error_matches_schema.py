"""The errors of `push`: each conforms to the schema and is described in the specification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import Program
from support.pushing import Pusher

from mlxk2.cli.parser import ALPHA_VARIABLE

Problems = Callable[[object], list[str]]

pytestmark = pytest.mark.spec

TYPES = [
    "CommandError",
    "dependency_missing",
    "auth_error",
    "workspace_not_found",
    "repo_not_found",
    "upload_failed",
    "push_operation_failed",
]


def _failed(type: str) -> dict[str, Any]:
    return {"status": "error", "command": "push", "data": None, "error": {"type": type, "message": "It failed."}}


@pytest.mark.parametrize("type", TYPES)
def test_each_error_conforms_to_the_schema_and_is_specified(problems: Problems, specification: str, type: str) -> None:
    assert problems(_failed(type)) == []
    assert f"| `{type}` |" in specification


@pytest.mark.parametrize("type", TYPES)
def test_an_error_with_the_keys_of_a_success_is_refused(problems: Problems, type: str) -> None:
    assert problems(_failed(type) | {"status": "success"})
    assert problems(_failed(type) | {"error": None})
    assert problems(_failed(type) | {"error": {"type": type}})
    assert problems(_failed(type) | {"error": {"message": "It failed."}})


@pytest.mark.parametrize(
    ("words", "enabled"),
    [(("push",), "1"), (("push", "."), "1"), (("push", ".", "org/model", "--no-such-flag"), "1"), (("push", "."), "")],
)
def test_wrong_usage_conforms_to_the_schema(
    mlxk2: Program, monkeypatch: pytest.MonkeyPatch, problems: Problems, words: tuple[str, ...], enabled: str
) -> None:
    monkeypatch.setenv(ALPHA_VARIABLE, enabled)
    result = mlxk2(*words, "--json")
    assert (result.code, result.json["command"], result.json["error"]["type"]) == (2, "push", "CommandError")
    assert problems(result.json) == []


@pytest.mark.parametrize(
    ("settings", "type"), [({}, "repo_not_found"), ({"HF_TOKEN": ""}, "auth_error"), ({"HF_TOKEN": "no"}, "auth_error")]
)
def test_the_output_of_a_failed_push_conforms_to_the_schema(
    pusher: Pusher, problems: Problems, settings: dict[str, str], type: str
) -> None:
    pusher.write({"config.json": b"{}"})
    outcome = pusher.run("--private", "--json", **settings)
    assert (outcome.code, outcome.json["error"]["type"]) == (1, type)
    assert problems(outcome.json) == []
