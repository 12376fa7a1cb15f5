"""Repo ids, folder names and model arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Program
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxk2.errors import ValidationError
from mlxk2.names import MAX_LENGTH, Demo, Folder, Repo, folder_of, parse, parse_repo, repo_id_of

PART = st.text("abcXYZ019._", min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mlx-community/Phi-3-mini", "models--mlx-community--Phi-3-mini"),
        ("gpt2", "models--gpt2"),
        ("org/sub/model", "models--org--sub--model"),
        ("Org/model.v1_2", "models--Org--model.v1_2"),
        ("组织/模型", "models--组织--模型"),
    ],
)
def test_names_and_folders_convert_both_ways(name: str, folder: str) -> None:
    assert folder_of(name) == folder
    assert repo_id_of(folder) == name


@settings(derandomize=True, database=None, max_examples=300)
@given(st.lists(PART, min_size=1, max_size=4).map("/".join))
def test_conversion_is_a_bijection_on_names_without_double_dashes(name: str) -> None:
    assert repo_id_of(folder_of(name)) == name


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("models--org--x---y", "org/x/-y"),
        ("models----", "/"),
        ("models--", ""),
        ("models--a----b", "a//b"),
        ("models--org--caf\udce9", "org/caf\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_malformed_folder_name_still_converts(folder: str, name: str) -> None:
    assert repo_id_of(folder) == name


@pytest.mark.parametrize(
    ("argument", "name", "revision"),
    [
        ("org/model", "org/model", None),
        ("model", "model", None),
        ("org/model@main", "org/model", "main"),
        ("org/model@0123abc", "org/model", "0123abc"),
        ("org/model@feature/x", "org/model", "feature/x"),
        ("org/x/-y", "org/x/-y", None),
        ("a" * MAX_LENGTH, "a" * MAX_LENGTH, None),
    ],
)
def test_arguments_are_split_at_the_revision(argument: str, name: str, revision: str | None) -> None:
    assert parse(argument) == Repo(name, revision)


BAD_NAMES = [
    "",
    " ",
    "\t",
    "/",
    "/model",
    "model/",
    "org//model",
    "../model",
    "org/..",
    "a..b",
    "org\\model",
    "org/mo\0del",
    "org/mo\ndel",
    "org/mo\x1bdel",
    "org/mo\x7fdel",
    "org/mo\x9bdel",
    "a" * (MAX_LENGTH + 1),
    "@main",
    " @main",
]
BAD_REVISIONS = ["org/model@", "org/model@ ", "org/model@../x", "org/model@/main", "org/model@a\\b", "org/model@a\0b"]


@pytest.mark.parametrize("argument", BAD_NAMES + BAD_REVISIONS)
def test_invalid_arguments_are_refused(argument: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_repo(argument)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("argument", [word for word in BAD_NAMES + BAD_REVISIONS if not word.startswith(("/", "../"))])
def test_an_invalid_argument_is_a_validation_error(mlxk2: Program, argument: str) -> None:
    result = mlxk2("show", argument, "--json")
    assert (result.code, result.json["error"]["type"]) == (1, "ValidationError")
    assert result.json["command"] == "show"


def test_an_invalid_argument_is_refused_before_the_cache_is_read(
    mlxk2: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unreadable = tmp_path / "file"
    unreadable.touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(unreadable))
    assert mlxk2("health", "a..b", "--json").json["error"]["type"] == "ValidationError"
    assert mlxk2("health", "a/b", "--json").json["error"]["type"] == "OperationError"


@pytest.mark.parametrize("path", [".", "..", "./x", "../x", "/x/y", "./"])
def test_paths_are_parsed_as_folders(path: str) -> None:
    assert isinstance(parse(path), Folder)
    assert parse(path) == Folder(path)


@pytest.mark.parametrize("name", ["x", "org/x", ".x", "org/.x", "x/.."])
def test_names_are_parsed_as_repos(name: str) -> None:
    if ".." in name:
        with pytest.raises(ValidationError):
            parse(name)
    else:
        assert isinstance(parse(name), Repo)


def test_demo_is_parsed_as_the_demo() -> None:
    assert isinstance(parse("demo"), Demo)
    with pytest.raises(ValidationError, match="has no revisions"):
        parse("demo@main")
