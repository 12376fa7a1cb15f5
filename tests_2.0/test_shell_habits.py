"""The command line as people of the shell use it: completion scripts, help with examples that work."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Program
from shapes import assert_envelope

from mlxk2.arguments import ALPHA_COMMANDS, ALPHA_VARIABLE, API_NAMES, COMMANDS, parse

SHELLS = ("bash", "zsh", "fish")


# ------------------------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_the_same_for_people_and_programs(mlxk2: Program, shell: str) -> None:
    document = mlxk2("completion", shell, "--json").json
    assert_envelope(document, "completion")
    assert document["data"]["shell"] == shell
    assert mlxk2("completion", shell) == (0, document["data"]["script"], "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_has_alpha_commands_when_they_are_enabled(
    mlxk2: Program, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    for value, expected in (("0", set()), ("1", set(ALPHA_COMMANDS))):
        monkeypatch.setenv(ALPHA_VARIABLE, value)
        script = mlxk2("completion", shell).out
        assert {name for name in ALPHA_COMMANDS if f"_{name}_options" in script or f"-a {name}" in script
                or f"_{name}_option_strings" in script} == expected  # fmt: skip


@pytest.mark.parametrize("words", [(), ("tcsh",), ("bash", "zsh")])
def test_a_shell_must_be_named_and_known(mlxk2: Program, words: tuple[str, ...]) -> None:
    result = mlxk2("completion", *words, "--json")
    assert (result.code, result.json["command"], result.json["error"]["type"]) == (2, "completion", "CommandError")


def test_only_this_command_pays_for_its_library(isolated_cache: Path) -> None:
    code = "import sys; from mlxk2.cli import main; main(sys.argv[1:]); sys.exit('shtab' in sys.modules)"
    assert isolated_cache.is_dir()
    for words, pays in ((["list"], False), (["--help"], False), (["completion", "bash"], True)):
        done = subprocess.run([sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL, env=os.environ)
        assert done.returncode == pays


# ------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_every_command_is_one(mlxk2: Program, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv(ALPHA_VARIABLE, "1")
    (example,) = re.findall(r"^Example: (.*)", mlxk2(command, "--help").out, re.MULTILINE | re.DOTALL)
    program, *words = shlex.split(example.partition(">")[0])
    assert (program, words[0]) == ("mlxk2", command)
    assert parse(words, {ALPHA_VARIABLE: "1"}).command == API_NAMES.get(command, command)


@pytest.mark.parametrize("command", COMMANDS)
def test_usage_is_short_enough_to_stand_before_an_error(
    mlxk2: Program, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv(ALPHA_VARIABLE, "1")
    usage, error = mlxk2(command, "--no-such-option", "one", "two", "three").err.splitlines()
    assert usage.startswith(f"usage: mlxk2 {command} [options]")
    assert error.startswith("Error: ")
