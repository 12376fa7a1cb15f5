"""Every command accepts `--json`: it prints one envelope on stdout, also for a wrong command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Program

from mlxk2.cli.parser import ALPHA_COMMANDS, ALPHA_VARIABLE, API_NAMES, COMMANDS

SPECIFICATION = Path(__file__).parents[2] / "docs" / "json-api-specification.md"

pytestmark = pytest.mark.spec


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_usage_of_a_command_is_an_envelope_of_that_command(
    mlxk2: Program, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv(ALPHA_VARIABLE, "1")
    code, out, err = mlxk2(command, "--no-such-flag", "--json")
    document = json.loads(out)
    assert (code, err) == (2, "")
    assert (document["status"], document["command"]) == ("error", API_NAMES.get(command, command))
    assert document["error"]["type"] == "CommandError"
    assert "usage" not in document["error"]["message"].lower()


@pytest.mark.parametrize("command", ["show", "pull", "rm", "clone", "push", "run", "completion"])
def test_a_missing_argument_is_reported_as_required(
    mlxk2: Program, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv(ALPHA_VARIABLE, "1")
    result = mlxk2(command, "--json")
    assert result.code == 2
    assert "required" in result.json["error"]["message"]


@pytest.mark.parametrize(
    "words", [("--json", "list"), ("list", "--json"), ("list", "--json", "--all"), ("list", "x", "--json")]
)
def test_the_json_flag_works_at_any_place(mlxk2: Program, words: tuple[str, ...]) -> None:
    result = mlxk2(*words)
    assert result.code == 0
    assert result.json == {"status": "success", "command": "list", "data": {"models": [], "count": 0}, "error": None}


@pytest.mark.parametrize("words", [("list", "--help", "--json"), ("--json", "list", "--help"), ("--json", "--help")])
def test_help_is_text_even_with_json(mlxk2: Program, words: tuple[str, ...]) -> None:
    code, out, err = mlxk2(*words)
    assert (code, out[:13], err) == (0, "usage: mlxk2 ", "")
    assert "`--help` overrides `--json`" in SPECIFICATION.read_text(encoding="utf-8")


@pytest.mark.parametrize("words", [("--json",), ("no-such-command", "--json"), ("--no-such-flag", "--json")])
def test_without_a_command_the_envelope_is_that_of_version(mlxk2: Program, words: tuple[str, ...]) -> None:
    result = mlxk2(*words)
    assert (result.code, result.json["command"], result.json["error"]["type"]) == (2, "version", "CommandError")


@pytest.mark.parametrize("command", ALPHA_COMMANDS)
def test_a_disabled_alpha_command_names_its_variable(
    mlxk2: Program, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.delenv(ALPHA_VARIABLE, raising=False)
    result = mlxk2(command, "org/model", "./folder", "--json")
    assert (result.code, result.json["command"], result.json["error"]["type"]) == (2, command, "CommandError")
    assert ALPHA_VARIABLE in result.json["error"]["message"]


def test_an_error_is_one_line_on_stderr_or_one_envelope_with_json(mlxk2: Program) -> None:
    for_people = mlxk2("show", "org/none")
    for_programs = mlxk2("show", "org/none", "--json")
    assert (for_people.out, for_programs.err) == ("", "")
    assert for_people.err.startswith(f"Error: {for_programs.json['error']['message']}\n")
    assert for_people.code == for_programs.code == 1
