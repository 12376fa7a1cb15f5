"""The output of the real program conforms to the schema and to what scripts for the API 0.1.5 expect."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from support.hub import HubServer
from support.hub.fixtures import Client
from support.layouts import COMMIT, CacheDir, chat_model
from support.previous_api import SHAPES, is_as_before

Problems = Callable[[object], list[str]]
Run = Callable[..., Any]

pytestmark = pytest.mark.spec

SUCCESSES = [
    ("list",),
    ("list", "sharded"),
    ("list", "no-such-model"),
    ("list", "--all", "--health", "--verbose"),
    ("show", "Sound-4bit", "--files", "--config"),
    ("show", "Sound-4bit@" + COMMIT[:7]),
    ("show", "mlx-community/Sharded-broken", "--files"),
    ("show", "org/model-gguf", "--config"),
    ("show", "org/x/-never", "--files", "--config"),
    ("show", "embed-small"),
    ("show", "demo", "--files"),
    ("health",),
    ("health", "Sound-4bit"),
    ("health", "no-such-model"),
    ("health", "--deep"),
    ("--version",),
    ("completion", "bash"),
    ("completion", "fish"),
]
ERRORS = [
    ((), "version", "CommandError", 2),
    (("no-such-command",), "version", "CommandError", 2),
    (("show",), "show", "CommandError", 2),
    (("list", "--no-such-flag"), "list", "CommandError", 2),
    (("serve", "--port", "no-number"), "server", "CommandError", 2),
    (("run", "Sound-4bit", "Hi", "--max-tokens", "many"), "run", "CommandError", 2),
    (("push", ".", "org/model"), "push", "CommandError", 2),
    (("completion", "tcsh"), "completion", "CommandError", 2),
    (("show", "org/none"), "show", "model_not_found", 1),
    (("show", "./no-such-folder"), "show", "model_not_found", 1),
    (("show", "sharded"), "show", "ambiguous_match", 1),
    (("health", "sharded"), "health", "ambiguous_match", 1),
    (("show", "Sound-4bit@ffff"), "show", "hash_not_found", 1),
    (("show", "org/../model"), "show", "ValidationError", 1),
    (("health", "org//x"), "health", "ValidationError", 1),
    (("pull", ""), "pull", None, 1),
    (("run", "org/none", "Hi"), "run", "model_not_found", 1),
    (("run", "Sharded-broken", "Hi"), "run", "ModelUnhealthyError", 1),
    (("run", "org/model-gguf", "Hi"), "run", "ModelNotRunnableError", 1),
    (("run", "org/unknown-architecture", "Hi"), "run", "ModelNotRunnableError", 1),
    (("run", "Sound-4bit", ""), "run", "ValidationError", 1),
]


@pytest.mark.parametrize("words", SUCCESSES, ids=" ".join)
@pytest.mark.usefixtures("filled")
def test_results_conform_to_the_schema(program: Run, problems: Problems, words: tuple[str, ...]) -> None:
    code, document, err = program(*words)
    assert (code, document["status"], err) == (0, "success", "")
    assert problems(document) == []
    assert is_as_before(document)


@pytest.mark.parametrize(("words", "command", "type", "code"), ERRORS)
@pytest.mark.usefixtures("filled")
def test_errors_conform_to_the_schema(
    program: Run, problems: Problems, words: tuple[str, ...], command: str, type: str | None, code: int
) -> None:
    outcome = program(*words)
    assert (outcome.code, outcome.document["status"], outcome.document["command"]) == (code, "error", command)
    assert type in (None, outcome.document["error"]["type"])
    assert problems(outcome.document) == []
    assert is_as_before(outcome.document)


def test_an_answer_of_the_demo_conforms_to_the_schema(program: Run, problems: Problems) -> None:
    code, document, _ = program("run", "demo", "Hello!", "--max-tokens", "8", "--seed", "1")
    assert (code, document["status"]) == (0, "success")
    assert problems(document) == []
    assert is_as_before(document)


def test_results_of_pull_and_clone_conform_to_the_schema(
    hub_server: HubServer, hub_client: Client, problems: Problems, tmp_path: Path
) -> None:
    hub_server.add("org/model", chat_model())
    hub_server.add("org/secret", chat_model(), private=True)
    expected = [
        (("pull", "org/model"), 0, "success"),
        (("pull", "org/model"), 0, "already_exists"),
        (("pull", "org/secret"), 1, "access_denied"),
        (("clone", "org/model", str(tmp_path / "copy")), 0, "success"),
        (("clone", "org/model", str(tmp_path / "copy")), 1, "filesystem_error"),
        (("rm", "org/mod"), 1, "requires_confirmation"),
        (("rm", "org/model", "--dry-run"), 0, "planned"),
        (("rm", "org/model"), 0, "deleted"),
    ]
    for words, code, ended in expected:
        outcome = hub_client.run(*words, "--json")
        assert (outcome.code, problems(outcome.json)) == (code, []), words
        assert is_as_before(outcome.json)
        assert ended in outcome.json["data"].values()


def test_results_for_a_folder_conform_to_the_schema(
    program: Run, problems: Problems, filled: CacheDir, tmp_path: Path
) -> None:
    shutil.copytree(filled.folder("mlx-community/Sound-4bit") / "snapshots" / COMMIT, tmp_path / "copy")
    for words in (("show", "./copy", "--files"), ("health", "./copy")):
        code, document, _ = program(*words)
        assert (code, problems(document), is_as_before(document)) == (0, [], True)


@pytest.mark.usefixtures("filled")
def test_json_output_is_ascii(mlxk2: Program) -> None:
    result = mlxk2("list", "--json")
    assert "org/f\u00fcr-alle" in [model["name"] for model in result.json["data"]["models"]]
    assert result.out.isascii()


@pytest.mark.usefixtures("filled")
def test_the_list_has_every_kind_of_model(program: Run) -> None:
    models = program("list").document["data"]["models"]
    assert {model["framework"] for model in models} == {"MLX", "GGUF", "Unknown"}
    assert {model["model_type"] for model in models} == {"chat", "embedding", "unknown"}
    assert {(model["health"], model["runtime_compatible"]) for model in models} == {
        ("healthy", True),
        ("healthy", False),
        ("unhealthy", False),
    }


def test_the_error_for_an_unreadable_cache_conforms_to_the_schema(
    program: Run, problems: Problems, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    code, document, _ = program("list", HF_HUB_CACHE=str(tmp_path / "file"))
    assert (code, document["error"]["type"]) == (1, "OperationError")
    assert problems(document) == []
    assert str(tmp_path) not in str(document)


def _samples(value: dict[str, Any]) -> list[object]:
    """Return values that a schema allows; none for schemas with a pattern or a reference."""
    if "anyOf" in value:
        return [sample for choice in value["anyOf"] for sample in _samples(choice)]
    if "pattern" in value or "$ref" in value:
        return []
    ready: dict[str, list[object]] = {"string": ["", "x"], "boolean": [True, False], "null": [None], "object": [{}]}
    numbers: dict[str, list[object]] = {"integer": [value.get("minimum", -1), 7], "number": [0.5, 7]}
    if value.get("type") == "array":
        return [[], *([sample] for sample in _samples(value["items"]))]
    return list(value["enum"]) if "enum" in value else (ready | numbers)[value["type"]]


@pytest.mark.parametrize("name", SHAPES)
def test_the_types_are_compatible_with_those_of_0_1_5(schema: dict[str, Any], name: str) -> None:
    today, before = schema["$defs"][name], SHAPES[name]
    required_before = before.kinds.keys() - before.optional
    assert required_before <= set(today["required"])
    if before.closed:
        assert today["additionalProperties"] is False
        assert today["properties"].keys() <= before.kinds.keys()
    for key in before.kinds.keys() & today["properties"].keys():
        refused = [sample for sample in _samples(today["properties"][key]) if not before.kinds[key](sample)]
        assert not refused, key
