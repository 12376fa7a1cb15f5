"""Output without `--json`: tables from the same data."""

from __future__ import annotations

import os
import re
import time

import pytest
from conftest import Program, Result
from support.layouts import (
    LFS_POINTER,
    CacheDir,
    as_json,
    base_model,
    chat_model,
    gguf_model,
    without,
)

from mlxk2.formatting import human_size

DAY = 86400
ESCAPES = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@pytest.fixture
def filled(cache_dir: CacheDir) -> CacheDir:
    """Return a cache with a model of every kind that `list` distinguishes."""
    cache_dir.add("mlx-community/chat-4bit", chat_model())
    cache_dir.add("org/chat", chat_model())
    cache_dir.add("mlx-community/base", base_model())
    cache_dir.add("org/gguf", gguf_model())
    cache_dir.add("mlx-community/damaged-chat", chat_model() | {"tokenizer.json": LFS_POINTER})
    cache_dir.add("org/strange-chat", chat_model(model_type="strange"))
    return cache_dir


def rows(result: Result) -> tuple[list[str], dict[str, list[str]]]:
    """Return the heading of a table and its other lines by their first word, without the total below the table."""
    assert result.code == 0
    table, _, _ = result.out.partition("\n\n")
    heading, *lines = (re.split(r"  +", line.strip()) for line in table.splitlines())
    return heading, {line[0]: line for line in lines}


def test_list_shows_mlx_chat_models(filled: CacheDir, mlxk2: Program) -> None:
    assert filled.path.is_dir()
    heading, lines = rows(mlxk2("list"))
    assert heading == ["Name", "Hash", "Size", "Modified", "Type"]
    assert set(lines) == {"chat-4bit", "org/chat", "damaged-chat", "org/strange-chat"}
    assert lines["org/chat"][1:] == ["0123456", "729B", "just now", "chat"]


def test_list_verbose_shows_all_mlx_models_with_full_names(filled: CacheDir, mlxk2: Program) -> None:
    assert filled.path.is_dir()
    heading, lines = rows(mlxk2("list", "--verbose"))
    assert "Framework" in heading
    assert set(lines) == {
        "mlx-community/chat-4bit",
        "mlx-community/base",
        "mlx-community/damaged-chat",
        "org/chat",
        "org/strange-chat",
    }


def test_list_all_shows_everything(filled: CacheDir, mlxk2: Program) -> None:
    assert filled.path.is_dir()
    _, lines = rows(mlxk2("list", "--all"))
    assert len(lines) == 6
    assert "GGUF" in lines["org/gguf"]


def test_list_health_adds_one_column(filled: CacheDir, mlxk2: Program) -> None:
    assert filled.path.is_dir()
    heading, lines = rows(mlxk2("list", "--health"))
    assert heading[-1] == "Health"
    assert [lines[name][-1] for name in ("org/chat", "org/strange-chat", "damaged-chat")] == [
        "healthy",
        "healthy*",
        "unhealthy",
    ]


def test_list_health_verbose_adds_three_columns(filled: CacheDir, mlxk2: Program) -> None:
    assert filled.path.is_dir()
    heading, lines = rows(mlxk2("list", "--health", "--verbose"))
    assert heading[-3:] == ["Integrity", "Runtime", "Reason"]
    assert lines["org/chat"][-3:] == ["healthy", "yes", "-"]
    assert lines["org/strange-chat"][-3:-1] == ["healthy", "no"]
    assert "'strange' not supported" in lines["org/strange-chat"][-1]
    assert lines["mlx-community/damaged-chat"][-3:-1] == ["unhealthy", "-"]
    assert lines["mlx-community/damaged-chat"][-1].startswith("tokenizer.json is a Git LFS pointer")


def total(result: Result) -> str:
    """Return the last line of a list, which counts the models and adds up their sizes."""
    assert result.code == 0
    return result.out.splitlines()[-1]


def test_a_list_ends_with_a_total(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/chat", chat_model())
    assert total(mlxk2("list")) == "1 model, 729B"
    cache_dir.add("org/chat-2", chat_model() | {"more": bytes(1_000_000)})
    assert total(mlxk2("list")) == "2 models, 1.0MB"
    cache_dir.add("org/gguf", gguf_model())
    assert total(mlxk2("list")) == "2 of 3 models, 1.0MB"
    assert total(mlxk2("list", "--all")).startswith("3 models, ")
    assert total(mlxk2("list", "org/*2")) == "1 model, 1.0MB"


def test_an_empty_list_suggests_what_to_do(cache_dir: CacheDir, mlxk2: Program) -> None:
    assert "mlxk2 pull" in mlxk2("list").out
    cache_dir.add("org/gguf", gguf_model())
    assert mlxk2("list").out == "No MLX chat models. To see the other model: mlxk2 list --all\n"
    cache_dir.add("org/gguf-2", gguf_model())
    assert mlxk2("list").out == "No MLX chat models. To see all 2 models: mlxk2 list --all\n"
    assert mlxk2("list", "--verbose").out == "No MLX models. To see all 2 models: mlxk2 list --all\n"


def test_an_empty_list_names_the_pattern(cache_dir: CacheDir, mlxk2: Program) -> None:
    assert mlxk2("list", "nosuch").out == "No model's name contains 'nosuch'.\n"
    cache_dir.add("org/a gguf", gguf_model())
    assert mlxk2("list", "org/x*").out == "No model's name matches 'org/x*'.\n"
    assert mlxk2("list", "nosuch\x1b").out == "No model's name contains 'nosuch\ufffd'.\n"
    advice = "To see the other model: mlxk2 list 'a g' --all"
    assert mlxk2("list", "a g").out == f"No MLX chat models named 'a g'. {advice}\n"


def test_health_without_a_match_names_the_pattern(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/model", chat_model())
    assert mlxk2("health", "nosuch").out == "No model's name contains 'nosuch'.\n"


def test_show_prints_the_facts_of_a_model(filled: CacheDir, mlxk2: Program) -> None:
    assert filled.path.is_dir()
    out = mlxk2("show", "org/strange").out
    facts = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in out.splitlines())
    assert facts["Model"] == "org/strange-chat"
    assert (facts["Health"], facts["Runs here"]) == ("healthy", "no")
    assert facts["Capabilities"] == "text-generation, chat"
    assert facts["Context length"] == "2048"
    assert "strange" in facts["Reason"]


def test_show_lists_files_and_prints_the_config(filled: CacheDir, mlxk2: Program) -> None:
    assert filled.path.is_dir()
    out = mlxk2("show", "org/chat", "--files", "--config").out
    assert re.search(r"model\.safetensors +\d+B +weights\n", out)
    assert '"num_hidden_layers": 2' in out


def test_health_prints_counts_and_reasons(filled: CacheDir, mlxk2: Program) -> None:
    assert filled.path.is_dir()
    out = mlxk2("health").out
    assert out.splitlines()[-1] == "5 of 6 healthy"
    assert re.search(r"damaged-chat +unhealthy +tokenizer\.json is a Git LFS pointer", out)


def test_version_is_one_line(mlxk2: Program) -> None:
    assert re.fullmatch(r"mlxk2 \d+\.\d+\.\S+\n", mlxk2("--version").out)


# --------------------------------------------------------------------------------------------------------- safe output


@pytest.mark.parametrize(
    "words", [("list",), ("list", "--all", "--health", "--verbose"), ("show", "org/chat", "--files"), ("health",)]
)
def test_lines_have_no_escape_codes_or_trailing_spaces(
    filled: CacheDir, mlxk2: Program, words: tuple[str, ...]
) -> None:
    assert filled.path.is_dir()
    result = mlxk2(*words)
    assert result.err == ""
    assert not ESCAPES.search(result.out)
    assert all(line == line.rstrip() for line in result.out.splitlines())


HOSTILE_NAMES = ["org/a\x1b[31mred", "org/a\rb", "org/a\nb", "org/a\x9b5m", "org/a\u202eb", "org/[red]x"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_are_made_safe_for_the_terminal(cache_dir: CacheDir, mlxk2: Program, name: str) -> None:
    cache_dir.add(name, chat_model() | {name.replace("/", "-"): b"x"})
    for words in (("list", "--all", "--health"), ("health",), ("show", "org", "--files")):
        out = mlxk2(*words).out
        assert "org/" in out
        assert not ESCAPES.search(out)
        assert "\u202e" not in out
    assert ("[red]x" in mlxk2("list", "--all").out) == (name == "org/[red]x")


def test_hostile_configs_are_made_safe_for_the_terminal(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/evil", chat_model(model_type="\x1b]0;evil\x07", title="[bold]a\x1b[31m\u202e\ud800"))
    out = mlxk2("show", "org/evil", "--config", "--files").out
    assert not ESCAPES.search(out)
    assert "[bold]a" in out


def test_hostile_text_in_errors_is_made_safe_for_the_terminal(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/a\x1b[31mred", chat_model())
    cache_dir.add("org/a\x9b5m", chat_model())
    cache_dir.add("org/evil", chat_model(model_type="\x1b]0;evil\x07"))
    ambiguous, idle = mlxk2("show", "org/a"), mlxk2("run", "org/evil", "hi")
    assert (ambiguous.code, idle.code) == (1, 1)
    assert "org/a\ufffd[31mred" in ambiguous.err
    assert "]0;evil" in idle.err
    assert not ESCAPES.search(ambiguous.err + idle.err)


def test_wide_tables_are_not_cut_outside_a_terminal(cache_dir: CacheDir, mlxk2: Program) -> None:
    name = "org/" + "very-long-name-" * 6
    cache_dir.add(name, without(chat_model(), "tokenizer.json") | {"x" * 200: b""})
    assert name in mlxk2("list", "--all", "--health", "--verbose").out
    assert "x" * 200 in mlxk2("show", name, "--files").out


def test_a_long_config_value_stays_on_one_line(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/long", chat_model() | {"config.json": as_json({"model_type": "x", "words": "word " * 50_000})})
    assert '"words": "' + "word " * 50_000 in mlxk2("show", "org/long", "--config").out


# ------------------------------------------------------------------------------------------------------ sizes and times


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0B"),
        (1, "1B"),
        (999, "999B"),
        (1000, "1.0KB"),
        (1500, "1.5KB"),
        (999_949, "999.9KB"),
        (999_950, "1.0MB"),
        (2_100_000_000, "2.1GB"),
        (999_950_000_000, "1.0TB"),
        (5 * 10**15, "5000.0TB"),
    ],
)
def test_sizes_are_decimal(count: int, shown: str) -> None:
    assert human_size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-DAY, "just now"),
        (0, "just now"),
        (50, "just now"),
        (60, "1m ago"),
        (3590, "59m ago"),
        (3600, "1h ago"),
        (DAY - 1, "23h ago"),
        (2 * DAY, "2d ago"),
        (29 * DAY, "29d ago"),
        (30 * DAY, "1mo ago"),
        (364 * DAY, "12mo ago"),
        (365 * DAY, "1y ago"),
        (4000 * DAY, "10y ago"),
    ],
)
def test_times_are_relative(cache_dir: CacheDir, mlxk2: Program, seconds: int, shown: str) -> None:
    snapshot = cache_dir.add("org/model", chat_model())
    moment = time.time() - seconds
    os.utime(snapshot, (moment, moment))
    assert shown in mlxk2("list").out
