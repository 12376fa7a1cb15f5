"""Numbers on the command line: an invalid or too large one is one clear error in every option that takes a number."""

from __future__ import annotations

import pytest
from conftest import Program
from support.conformance import error_of
from support.layouts import CacheDir, chat_model

WHOLE = {
    "run": ("--max-tokens", "--context-length", "--top-k", "--seed"),
    "serve": ("--max-tokens", "--context-length", "--port", "--max-concurrent", "--max-queue"),
}
DECIMAL: dict[str, tuple[str, ...]] = {"run": ("--temperature", "--top-p", "--min-p", "--repetition-penalty")}
NO_NUMBERS = ("", " ", "nan", "inf", "-Infinity", "٣", "１", "1_0", "0x1", "one", "1,5", "1e400", "9" * 400, "9" * 5000)


def cases(options: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Return every option with its command."""
    return [(command, option) for command, names in options.items() for option in names]


@pytest.mark.parametrize("value", [*NO_NUMBERS, "1.5", "1e3"], ids=lambda value: ascii(value)[:12])
@pytest.mark.parametrize(("command", "option"), cases(WHOLE))
def test_an_invalid_whole_number_is_wrong_usage(mlxk2: Program, command: str, option: str, value: str) -> None:
    assert_is_named(mlxk2, command, option, value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, "1e", ".", "-1e999"], ids=lambda value: ascii(value)[:12])
@pytest.mark.parametrize(("command", "option"), cases(DECIMAL))
def test_an_invalid_number_is_wrong_usage(mlxk2: Program, command: str, option: str, value: str) -> None:
    assert_is_named(mlxk2, command, option, value)


def assert_is_named(mlxk2: Program, command: str, option: str, value: str) -> None:
    """Fail unless the error is one of wrong usage, names the option and is short."""
    words = ["run", "demo", "Hi"] if command == "run" else [command]
    error = error_of(mlxk2(*words, f"{option}={value}", "--json"), "run" if command == "run" else "server", code=2)
    assert error["type"] == "CommandError"
    assert option in error["message"] and len(error["message"]) < 200


SIZES = ("", "much", "1.5.5GB", "٣GB", "-1", "inf", "nan", "1e400", "9" * 400, "9" * 18 + "TB", "1PB", "0x10")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: ascii(size)[:12])
def test_an_invalid_size_is_one_error(mlxk2: Program, size: str) -> None:
    error = error_of(mlxk2("serve", f"--prompt-cache-bytes={size}", "--json"), "server")
    assert error["type"] == "ValidationError"
    assert "--prompt-cache-bytes" in error["message"] and len(error["message"]) < 200


LIMITS = (
    ("--max-concurrent", 0),
    ("--max-concurrent", 65537),
    ("--max-queue", -1),
    ("--max-queue", 2**64),
    ("--port", 65536),
    ("--port", -1),
    ("--max-tokens", 0),
    ("--max-tokens", 2**64),
    ("--context-length", 0),
    ("--context-length", 2**64),
)


@pytest.mark.parametrize(("option", "value"), LIMITS)
def test_a_number_outside_the_limits_of_the_server_is_one_error(mlxk2: Program, option: str, value: int) -> None:
    error = error_of(mlxk2("serve", f"{option}={value}", "--json"), "server")
    assert option.strip("-").replace("-", "_") in error["message"].replace("-", "_") and str(value) in error["message"]


def test_plain_output_shows_the_first_matches_and_json_all(mlxk2: Program, cache_dir: CacheDir) -> None:
    for number in range(33):
        cache_dir.add(f"org/hi-{number:02}", chat_model())
    result = mlxk2("run", "hi", "Hello")
    *lines, last = result.err.splitlines()
    assert result.code == 1 and len(lines) < 25
    assert "  org/hi-00" in lines and "33 models match" in lines[0]
    assert "13 more" in last and "--json" in last
    assert len(error_of(mlxk2("run", "hi", "Hello", "--json"), "run")["matches"]) == 33
