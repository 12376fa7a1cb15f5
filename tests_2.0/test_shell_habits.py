"""Habits of shell users: completion scripts, and help with examples that work."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import unicodedata
from importlib import import_module

import pytest
from conftest import Program
from support.conformance import assert_envelope
from support.layouts import CacheDir, chat_model
from wcwidth import wcswidth

from mlxk2.cli.parser import ALPHA_COMMANDS, ALPHA_VARIABLE, API_NAMES, COMMANDS, parse

SHELLS = ("bash", "zsh", "fish")


# ------------------------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize("shell", SHELLS)
def test_the_completion_script_is_the_same_in_text_and_json(mlxk2: Program, shell: str) -> None:
    document = mlxk2("completion", shell, "--json").json
    assert_envelope(document, "completion")
    assert document["data"]["shell"] == shell
    assert mlxk2("completion", shell) == (0, document["data"]["script"], "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_completion_script_has_alpha_commands_if_enabled(
    mlxk2: Program, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    for value, expected in (("0", set()), ("1", set(ALPHA_COMMANDS))):
        monkeypatch.setenv(ALPHA_VARIABLE, value)
        script = mlxk2("completion", shell).out
        assert {
            name
            for name in ALPHA_COMMANDS
            if f"_{name}_options" in script or f"-a {name}" in script or f"_{name}_option_strings" in script
        } == expected


@pytest.mark.parametrize("words", [(), ("tcsh",), ("bash", "zsh")])
def test_an_unknown_or_missing_shell_is_wrong_usage(mlxk2: Program, words: tuple[str, ...]) -> None:
    result = mlxk2("completion", *words, "--json")
    assert (result.code, result.json["command"], result.json["error"]["type"]) == (2, "completion", "CommandError")


@pytest.mark.usefixtures("isolated_cache")
def test_only_completion_imports_shtab() -> None:
    code = "import sys; from mlxk2.cli.main import main; main(sys.argv[1:]); sys.exit('shtab' in sys.modules)"
    for words, pays in ((["list"], False), (["--help"], False), (["completion", "bash"], True)):
        done = subprocess.run([sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL, env=os.environ)
        assert done.returncode == pays


# ------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_in_every_help_text_is_valid(mlxk2: Program, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv(ALPHA_VARIABLE, "1")
    (example,) = re.findall(r"^Example: (.*)", mlxk2(command, "--help").out, re.MULTILINE | re.DOTALL)
    program, *words = shlex.split(example.partition(">")[0])
    assert (program, words[0]) == ("mlxk2", command)
    assert parse(words, {ALPHA_VARIABLE: "1"}).command == API_NAMES.get(command, command)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_reaches_its_command(command: str) -> None:
    arguments = {"show": 1, "pull": 1, "rm": 1, "clone": 2, "push": 2, "run": 1, "completion": 1}
    words = ["bash"] if command == "completion" else ["x/y"] * arguments.get(command, 0)
    args = vars(parse([command, *words], {ALPHA_VARIABLE: "1"}))
    options = import_module(f"mlxk2.commands.{args['module']}").Options._fields
    # The program itself handles the other options.
    assert set(options) == set(args) - {"command", "module", "parser", "version", "json", "quiet"}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_follows_a_one_line_usage(mlxk2: Program, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv(ALPHA_VARIABLE, "1")
    usage, error = mlxk2(command, "--no-such-option", "one", "two", "three").err.splitlines()
    assert usage.startswith(f"usage: mlxk2 {command} [options]")
    assert error.startswith("Error: ")


def test_without_arguments_the_help_is_printed(mlxk2: Program) -> None:
    code, out, err = mlxk2()
    # Wrong usage writes to stderr: what reads stdout gets nothing.
    assert (code, out) == (2, "")
    assert err.startswith(mlxk2("--help").out)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("words", ["help {}", "help {} --json", "--json help {}"])
def test_help_works_as_command_and_as_option(mlxk2: Program, command: str, words: str) -> None:
    result = mlxk2(*words.format(command).split())
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"usage: mlxk2 {command} [options]")
    assert ("alpha" in result.out) == (command in ALPHA_COMMANDS)


@pytest.mark.parametrize("words", ["help", "help --json", "help help", "help --help"])
def test_help_without_a_command_is_that_of_the_program(mlxk2: Program, words: str) -> None:
    assert mlxk2(*words.split()) == mlxk2("--help")
    listed = re.findall(r"^    (\w+)\s+(.*?)$", mlxk2("--help").out, re.MULTILINE)
    assert {name for name, help in listed if help.endswith("(alpha)")} == set(ALPHA_COMMANDS)


@pytest.mark.parametrize(
    "words", ["push . org/x", "push --check-only", "push -- --help", "push --branch --help", "clone x"]
)
def test_alpha_commands_need_their_variable_except_for_help(mlxk2: Program, words: str) -> None:
    result = mlxk2(*words.split())
    command = words.split()[0]
    error = f"Error: `{command}` is an alpha feature; to enable it, set {ALPHA_VARIABLE}=1.\n"
    assert result == (2, "", error)


def test_the_help_of_push_first_says_what_it_deletes(mlxk2: Program) -> None:
    _, first, *_ = mlxk2("push", "--help").out.split("\n\n")
    assert "delete on the hub what the folder lacks" in first.partition(". ")[0]


# --------------------------------------------------------------------------------------------------------- mistyped


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("lst", "There is no command 'lst'.", "Did you mean list?"),
        ("Health", "There is no command 'Health'.", "Did you mean health?"),
        ("hlep", "There is no command 'hlep'.", "Did you mean help?"),
        ("help pul", "There is no command 'pul'.", "Did you mean pull?"),
        ("quantize", "There is no command 'quantize'.", "`mlxk2 help` lists the commands."),
        ("list --helth", "Unrecognized arguments: --helth", "Did you mean --health?"),
        ("run demo hi --sede=1", "Unrecognized arguments: --sede=1", "Did you mean --seed?"),
        ("run demo hi --temperatur 1", "Unrecognized arguments: --temperatur 1", "Did you mean --temperature?"),
        ("serve --max-c 1", "Unrecognized arguments: --max-c 1", "Did you mean --max-concurrent?"),
        ("--verison", "Unrecognized arguments: --verison", "Did you mean --version?"),
        ("--health list", "Unrecognized arguments: --health", "Write --health after the command."),
        ("list --quantize", "Unrecognized arguments: --quantize", None),
        ("run demo what is it", "Unrecognized arguments: is it", "A prompt of several words needs quotes"),
    ],
)
def test_a_mistyped_command_line_gets_a_suggestion(mlxk2: Program, line: str, message: str, hint: str | None) -> None:
    for_people, for_programs = mlxk2(*line.split()), mlxk2(*line.split(), "--json")
    assert (for_people.code, for_programs.code) == (2, 2)
    assert_envelope(for_programs.json, for_programs.json["command"], "error")
    error = for_programs.json["error"]
    assert error["message"] == message
    assert error.get("hint") == hint or str(error["hint"]).startswith(str(hint))
    usage, *lines = for_people.err.splitlines()
    assert usage.startswith("usage: mlxk2 ")
    assert lines == [f"Error: {message}", *filter(None, [error.get("hint")])]


@pytest.mark.parametrize(
    ("line", "sorted_line"),
    [
        ("run demo --seed 1 Hi", "run demo Hi --seed 1"),
        ("--json run --seed 1 demo --verbose -- -x", "run demo --json --verbose --seed 1 -- -x"),
        ("clone org/model --branch x dir", "clone org/model dir --branch x"),
        ("push dir --private org/model", "push dir org/model --private"),
        ("list --all pattern", "list pattern --all"),
    ],
)
def test_options_work_at_any_place(line: str, sorted_line: str) -> None:
    args, expected = (vars(parse(words.split(), {ALPHA_VARIABLE: "1"})) for words in (line, sorted_line))
    assert args | {"parser": None} == expected | {"parser": None}


def test_temperature_has_a_short_name(mlxk2: Program) -> None:
    assert parse(["run", "demo", "--temp", "0.2"], {}).temperature == 0.2
    assert parse(["run", "demo"], {}).temperature == 0.7
    assert len(re.findall(r"--temp\b", mlxk2("run", "--help").out)) == 1


# ------------------------------------------------------------------------------------------------------------ names

NAMES = [
    "org/plain",
    "组织/模型-chat",
    "조직/모델",
    "منظمة/نموذج",
    "ארגון/מודל",
    "org/🦜🦙",
    "org/e\u0301combinin\u0301g",
    "org/👩\u200d👩\u200d👧",
    "org/\u202egnp.exe",
    "org/a\u2066b\u200b\u00ad",
    "org/\x1b[2Jx\x07\x9b1A",
    "org/\nnew\rline\ttab",
    "org/\x85\u2028line",
    os.fsdecode(b"org/\xff\xfe-bytes"),
]


@pytest.fixture
def strange(cache_dir: CacheDir) -> CacheDir:
    """Return a cache of models with names in many scripts and with control characters."""
    for name in NAMES:
        cache_dir.add(name, chat_model())
    return cache_dir


@pytest.mark.usefixtures("strange")
@pytest.mark.parametrize(
    ("line", "fact"), [("list", "0123456"), ("list --health --verbose", "0123456"), ("health", "healthy")]
)
def test_columns_are_aligned_for_names_in_any_script(mlxk2: Program, line: str, fact: str) -> None:
    rows = [row for row in mlxk2(*line.split()).out.splitlines() if fact in row]
    assert len(rows) == len(NAMES) + line.startswith("health")
    assert len({wcswidth(row.partition(fact)[0]) for row in rows[: len(NAMES)]}) == 1


@pytest.mark.usefixtures("strange")
def test_names_with_control_characters_do_not_move_the_cursor(mlxk2: Program) -> None:
    lines = ["list", "list --all --health --verbose", "health", "show bytes", "rm bytes --dry-run", "rm org --dry-run"]
    lines += [f"{command} {name}" for name in NAMES if name.isprintable() for command in ("show", "health")]
    for line in lines:
        result = mlxk2(*line.split())
        shown = result.out + result.err
        assert shown
        assert not {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}


@pytest.mark.usefixtures("strange")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("line", ["list --all", "health", "show bytes", "rm 模型 --dry-run", "rm none-模型 --dry-run"])
def test_names_are_printed_in_any_encoding(line: str, encoding: str) -> None:
    environment = os.environ | {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-m", "mlxk2", *line.split()], env=environment, capture_output=True)
    assert done.returncode == ("none" in line)
    shown = (done.stdout + done.stderr).decode(encoding)
    assert "Traceback" not in shown
    assert ("bytes" if "模" not in line else "模型".encode(encoding, "backslashreplace").decode(encoding)) in shown
