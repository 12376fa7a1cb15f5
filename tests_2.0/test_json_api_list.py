"""`list --json`: its form, its order, and that flags for plain output do not change it."""

from __future__ import annotations

import os
from typing import Any

import pytest
from conftest import Program
from support.conformance import assert_envelope, differences
from support.layouts import (
    COMMIT,
    CacheDir,
    base_model,
    chat_model,
    gguf_model,
    sharded_model,
    without,
)

from mlxk2 import spec


@pytest.fixture
def filled(cache_dir: CacheDir) -> CacheDir:
    """Return a cache with a model of every kind."""
    cache_dir.add("mlx-community/chat", chat_model())
    cache_dir.add("Zeta/base", base_model())
    cache_dir.add("alpha/gguf", gguf_model())
    cache_dir.add("mlx-community/embed", sharded_model())
    cache_dir.add("org/damaged", without(chat_model(), "tokenizer.json"))
    cache_dir.folder("org/nothing").mkdir()
    return cache_dir


def list_data(mlxk2: Program, *words: str) -> dict[str, Any]:
    result = mlxk2("list", *words, "--json")
    assert result.code == 0
    assert_envelope(result.json, "list")
    data: dict[str, Any] = result.json["data"]
    return data


def test_the_list_is_sorted_and_counts_all_models(filled: CacheDir, mlxk2: Program) -> None:
    data = list_data(mlxk2)
    names = [model["name"] for model in data["models"]]
    assert names == sorted(names)
    assert data["count"] == len(names) == len(list(filled.path.glob("models--*")))


def test_a_model_has_exactly_the_documented_keys(filled: CacheDir, mlxk2: Program) -> None:
    assert filled.path.is_dir()
    for model in list_data(mlxk2)["models"]:
        assert list(model) == [
            "name",
            "hash",
            "size_bytes",
            "last_modified",
            "framework",
            "model_type",
            "capabilities",
            "health",
            "runtime_compatible",
            "reason",
            "cached",
        ]
        assert model["cached"] is True


def test_a_model_object_has_the_expected_values(cache_dir: CacheDir, mlxk2: Program) -> None:
    files = chat_model()
    snapshot = cache_dir.add("mlx-community/chat", files)
    os.utime(snapshot, (1_700_000_000, 1_700_000_000))
    assert list_data(mlxk2)["models"] == [
        {
            "name": "mlx-community/chat",
            "hash": COMMIT,
            "size_bytes": sum(map(len, files.values())),
            "last_modified": "2023-11-14T22:13:20Z",
            "framework": "MLX",
            "model_type": "chat",
            "capabilities": ["text-generation", "chat"],
            "health": "healthy",
            "runtime_compatible": True,
            "reason": None,
            "cached": True,
        }
    ]


def test_an_unhealthy_model_never_runs_and_has_a_reason(filled: CacheDir, mlxk2: Program) -> None:
    assert filled.path.is_dir()
    models = {model["name"]: model for model in list_data(mlxk2)["models"]}
    for model in models.values():
        assert model["runtime_compatible"] == (model["reason"] is None)
        assert model["health"] == "healthy" or not model["runtime_compatible"]
    assert models["org/nothing"]["hash"] is None
    assert models["alpha/gguf"]["reason"].startswith("Framework GGUF not executable")


@pytest.mark.parametrize("flags", [["--all"], ["--health"], ["--verbose"], ["--all", "--health", "--verbose"]])
def test_flags_for_plain_output_do_not_change_json(filled: CacheDir, mlxk2: Program, flags: list[str]) -> None:
    assert filled.path.is_dir()
    assert list_data(mlxk2, *flags) == list_data(mlxk2)


@pytest.mark.parametrize(("pattern", "count"), [("", 6), ("mlx", 2), ("MLX-Community/", 2), ("zeta", 1), ("none", 0)])
def test_a_pattern_selects_models_by_name(filled: CacheDir, mlxk2: Program, pattern: str, count: int) -> None:
    assert filled.path.is_dir()
    assert list_data(mlxk2, pattern)["count"] == count


GLOBS = {
    "mlx-community/*": ["mlx-community/chat", "mlx-community/embed"],
    "MLX-*/C*": ["mlx-community/chat"],
    "c*t": ["mlx-community/chat"],  # as the table writes it
    "*/[ae]*": ["mlx-community/embed"],
    "*a": [],
    "zeta/bas?": ["Zeta/base"],
    "[": [],
}


@pytest.mark.parametrize(("pattern", "expected"), GLOBS.items(), ids=GLOBS)
def test_a_pattern_may_be_a_glob(filled: CacheDir, mlxk2: Program, pattern: str, expected: list[str]) -> None:
    assert filled.path.is_dir()
    assert [model["name"] for model in list_data(mlxk2, pattern)["models"]] == expected


def test_glob_characters_in_a_name_match_themselves(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/[red]x", chat_model())
    assert [list_data(mlxk2, pattern)["count"] for pattern in ("[red]", "org/[red]x", "org/[[]red]x")] == [1, 1, 1]


ORDERS = {
    (): ["mlx-community/b", "org/a", "org/c"],
    ("--sort", "name"): ["mlx-community/b", "org/a", "org/c"],
    ("--sort", "size"): ["org/a", "mlx-community/b", "org/c"],
    ("--sort", "modified"): ["org/c", "mlx-community/b", "org/a"],
}


@pytest.mark.parametrize(("words", "expected"), ORDERS.items(), ids=lambda value: " ".join(value))
def test_the_order_can_be_chosen(
    cache_dir: CacheDir, mlxk2: Program, words: tuple[str, ...], expected: list[str]
) -> None:
    for name, size, time in (("org/a", 9000, 10), ("org/c", 100, 30), ("mlx-community/b", 100, 20)):
        os.utime(cache_dir.add(name, chat_model() | {"more": bytes(size)}), (time, time))
    assert [model["name"] for model in list_data(mlxk2, *words)["models"]] == expected
    table = mlxk2("list", "--verbose", *words).out.partition("\n\n")[0]
    assert [line.split()[0] for line in table.splitlines()[1:]] == expected


def test_times_are_utc_in_any_time_zone(cache_dir: CacheDir, mlxk2: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(cache_dir.add("org/model", chat_model()), (0, 0))
    monkeypatch.setenv("TZ", "America/New_York")
    assert list_data(mlxk2)["models"][0]["last_modified"] == "1970-01-01T00:00:00Z"


@pytest.mark.parametrize("seconds", [-(10**9), 2**31, 2**33, 253_402_300_800])
def test_times_outside_the_usual_range_are_valid(cache_dir: CacheDir, mlxk2: Program, seconds: int) -> None:
    snapshot = cache_dir.add("org/model", chat_model())
    os.utime(snapshot, (0, seconds))
    if os.stat(snapshot).st_mtime != seconds:
        pytest.skip("this file system does not keep such a time")
    list_data(mlxk2)


def test_names_in_any_script_are_unchanged(cache_dir: CacheDir, mlxk2: Program) -> None:
    names = ["组织/模型", "org/Ünïcode", "org/🤗"]
    for name in names:
        cache_dir.add(name, chat_model())
    assert [model["name"] for model in list_data(mlxk2)["models"]] == sorted(names)


@pytest.mark.skipif(os.uname().sysname == "Darwin", reason="this system has no names that are not UTF-8")
def test_names_that_are_not_utf8_are_shown(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/caf\udce9", chat_model() | {"caf\udce9.txt": b"x"})
    (model,) = list_data(mlxk2)["models"]
    assert (model["name"], model["health"]) == ("org/caf\N{REPLACEMENT CHARACTER}", "healthy")
    assert "caf\N{REPLACEMENT CHARACTER}.txt" in mlxk2("show", "org/caf", "--files", "--json").out.encode().decode(
        "unicode_escape"
    )


@pytest.mark.parametrize("folder", ["models--org--x---y", "models--", "models----", "models--a----b", "models--x@y"])
def test_broken_folder_names_are_listed(cache_dir: CacheDir, mlxk2: Program, folder: str) -> None:
    (cache_dir.path / folder).mkdir()
    cache_dir.add("org/sound", chat_model())
    assert list_data(mlxk2)["count"] == 2


def test_the_conformance_check_finds_wrong_values(filled: CacheDir, mlxk2: Program) -> None:
    assert filled.path.is_dir()
    model = list_data(mlxk2)["models"][0]
    wrong = [
        model | {"extra": 1},
        model | {"hash": "x"},
        model | {"size_bytes": -1},
        model | {"size_bytes": True},
        model | {"health": "fine"},
        model | {"capabilities": ["sing"]},
        model | {"last_modified": "2023-11-14"},
        {key: value for key, value in model.items() if key != "cached"},
    ]
    assert not list(differences(model, spec.ModelObject, ""))
    assert all(list(differences(value, spec.ModelObject, "")) for value in wrong)
