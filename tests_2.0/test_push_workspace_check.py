"""`push --check-only`: faults of a folder, found without the network, a token or the client library."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from support.layouts import (
    LFS_POINTER,
    base_model,
    chat_model,
    gguf_model,
    index_of,
    shard_names,
    sharded_model,
    weights,
    without,
)
from support.pushing import FOLDER, MODEL, Pusher, assert_push_document, push_data

from mlxk2.cli.parser import ALPHA_VARIABLE

SHARDS = shard_names(3)
Files = dict[str, Any]
Checked = Callable[[Files], dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder to push in the current folder, without a token or a hub."""
    monkeypatch.setenv(ALPHA_VARIABLE, "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / FOLDER).mkdir()
    return Path(FOLDER)


@pytest.fixture
def checked(mlxk2: Program, folder: Path, tmp_path: Path) -> Checked:
    """Return a function that writes files into the folder and returns the data of the check."""

    def check(files: Files) -> dict[str, Any]:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        result = mlxk2("push", FOLDER, MODEL, "--check-only", "--json")
        assert (result.code, result.err) == (0, "")
        assert str(tmp_path) not in result.out
        assert_push_document(result.json, "success")
        data: dict[str, Any] = result.json["data"]
        return data

    return check


def codes(data: dict[str, Any], severity: str = "error") -> list[tuple[str, str | None]]:
    """Return the code and the path of each anomaly."""
    anomalies = data["workspace_health"]["anomalies"]
    return [(anomaly["code"], anomaly["path"]) for anomaly in anomalies if anomaly["severity"] == severity]


def test_a_whole_model_is_healthy(checked: Checked) -> None:
    data = checked(files := chat_model())
    assert data["workspace_health"] == {
        "files_count": len(files),
        "total_bytes": sum(len(content) for content in files.values() if isinstance(content, bytes)),
        "config": {"exists": True, "valid_json": True, "path": "config.json"},
        "weights": {
            "count": 1,
            "formats": ["safetensors"],
            "index": {"has_index": False, "missing": []},
            "pattern_complete": True,
        },
        "anomalies": [],
        "healthy": True,
    }
    assert (data["local_files_count"], data["uploaded_files_count"]) == (len(files), 0)
    assert (data["no_changes"], data["commit_sha"], data["created_repo"]) == (False, None, False)
    assert data["repo_url"] == f"http://127.0.0.1:9/{MODEL}"
    assert not {"dry_run", "hf_logs", "change_summary"} & data.keys()


@pytest.mark.parametrize("files", [base_model(), sharded_model(), gguf_model()], ids=["base", "sharded", "gguf"])
def test_other_kinds_of_whole_models_are_healthy(checked: Checked, files: Files) -> None:
    assert checked(files)["workspace_health"]["healthy"]


DAMAGES: list[tuple[str, Files, str, str | None]] = [
    ("nothing", {}, "empty_folder", None),
    ("no config", without(chat_model(), "config.json"), "missing_config", None),
    ("bad config", chat_model() | {"config.json": b"{"}, "invalid_config", "config.json"),
    ("no weights", without(chat_model(), "model.safetensors"), "incomplete_weights", None),
    ("empty weights", chat_model() | {"model.safetensors": b""}, "damaged_weights", "model.safetensors"),
    ("cut weights", chat_model() | {"model.safetensors": weights()[:-1]}, "damaged_weights", "model.safetensors"),
    ("pointer", chat_model() | {"model.safetensors": LFS_POINTER}, "damaged_weights", "model.safetensors"),
    ("no index", without(sharded_model(), "model.safetensors.index.json", SHARDS[1]), "incomplete_weights", None),
    (
        "bad index",
        sharded_model() | {"model.safetensors.index.json": b"{}"},
        "incomplete_weights",
        "model.safetensors.index.json",
    ),
    ("missing shard", without(sharded_model(), SHARDS[1]), "missing_shard", SHARDS[1]),
    (
        "unfinished",
        chat_model() | {"model.safetensors.incomplete": b"x"},
        "unfinished_file",
        "model.safetensors.incomplete",
    ),
    ("no tokenizer", without(chat_model(), "tokenizer.json"), "no_tokenizer", None),
]


@pytest.mark.parametrize(("files", "code", "path"), [row[1:] for row in DAMAGES], ids=[row[0] for row in DAMAGES])
def test_damage_has_a_code_and_a_path(
    checked: Checked, mlxk2: Program, files: Files, code: str, path: str | None
) -> None:
    data = checked(files)
    assert codes(data) == [(code, path)]
    assert not data["workspace_health"]["healthy"]
    # `health` has the same rules and gives the same verdict.
    assert mlxk2("health", FOLDER, "--json").json["data"]["summary"]["healthy_count"] == 0


def test_every_missing_shard_is_named(checked: Checked) -> None:
    data = checked(without(sharded_model(4), *shard_names(4)[1:3]))
    index = data["workspace_health"]["weights"]["index"]
    assert index == {"has_index": True, "missing": shard_names(4)[1:3]}
    assert codes(data) == [("missing_shard", shard) for shard in shard_names(4)[1:3]]
    assert not data["workspace_health"]["weights"]["pattern_complete"]


def test_an_index_that_leads_out_of_the_folder_is_an_error(checked: Checked) -> None:
    data = checked(chat_model() | {"model.safetensors.index.json": index_of(["../model.safetensors"])})
    assert codes(data) == [("incomplete_weights", "model.safetensors.index.json")]


def test_a_missing_readme_is_a_warning(checked: Checked) -> None:
    data = checked(without(chat_model(), "README.md"))
    assert (codes(data), codes(data, "warning")) == ([], [("no_readme", None)])
    assert data["workspace_health"]["healthy"]


def test_several_problems_are_all_reported(checked: Checked) -> None:
    data = checked(without(chat_model(), "config.json", "tokenizer.json") | {"model.safetensors": b""})
    assert [code for code, _ in codes(data)] == ["missing_config", "damaged_weights", "no_tokenizer"]


def test_ignored_files_do_not_count(checked: Checked) -> None:
    files = chat_model()
    litter = {".git/config": b"x", "__pycache__/a.pyc": b"x", ".cache/huggingface/b": b"x", ".DS_Store": b"x"}
    own = {".hfignore": b"notes/\n*.tmp\n", "notes/a": b"x", "b.tmp": b"x"}
    health = checked(files | litter | own)["workspace_health"]
    assert (health["files_count"], health["healthy"]) == (len(files) + 1, True)


# ---------------------------------------------------------------------------------------------------------------- links


def _link_out(folder: Path) -> None:
    (folder.parent / "secret").write_text("secret")
    (folder / "x").symlink_to(folder.parent.resolve() / "secret")


def _link_to_folder(folder: Path) -> None:
    (folder / "real").mkdir()
    (folder / "x").symlink_to("real")


KINDS: dict[str, Callable[[Path], None]] = {
    "leads outside the folder": _link_out,
    "is a dangling link": lambda folder: (folder / "x").symlink_to("nowhere"),
    "is a link to a folder": _link_to_folder,
    "leads through too many links": lambda folder: (folder / "x").symlink_to("x"),
    "is not a regular file": lambda folder: os.mkfifo(folder / "x"),
}


@pytest.mark.parametrize("problem", KINDS)
def test_an_unusable_file_is_an_anomaly(checked: Checked, folder: Path, problem: str) -> None:
    KINDS[problem](folder)
    data = checked(chat_model())
    assert codes(data) == [("unusable_file", "x")]
    assert problem in data["workspace_health"]["anomalies"][0]["message"]
    assert not data["workspace_health"]["healthy"]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take only UTF-8")
def test_a_name_that_is_not_utf8_is_an_anomaly(checked: Checked, folder: Path) -> None:
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff"))).touch()
    inside = Path(os.fsdecode(os.fsencode(folder) + b"/\xfe"))
    inside.mkdir()
    (inside / "notes").touch()
    names = ["\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}/notes"]
    assert codes(checked(chat_model())) == [("unusable_file", name) for name in names]


def test_links_inside_the_folder_count_as_files(checked: Checked, folder: Path) -> None:
    (folder / "weights").mkdir()
    (folder / "weights" / "real").write_bytes(weights())
    (folder / "model.safetensors").symlink_to("weights/real")
    assert checked(without(chat_model(), "model.safetensors"))["workspace_health"]["healthy"]


def test_links_out_of_the_folder_are_an_anomaly(checked: Checked, folder: Path) -> None:
    (folder.parent / "blob").write_bytes(weights())
    (folder / "model.safetensors").symlink_to("../blob")
    data = checked(without(chat_model(), "model.safetensors"))
    assert ("unusable_file", "model.safetensors") in codes(data)


# --------------------------------------------------------------------------------------------------------- plain output


@pytest.mark.parametrize(
    ("files", "lines"),
    [
        (chat_model(), ["the folder is a complete model."]),
        (
            without(sharded_model(), SHARDS[0]),
            [f"missing shard: {SHARDS[0]}.", f"  error: Missing shard: {SHARDS[0]}."],
        ),
        (without(chat_model(), "README.md"), ["the folder is a complete model.", "  warning: There is no README.md."]),
    ],
)
def test_plain_output_has_the_verdict_and_the_anomalies(
    checked: Checked, mlxk2: Program, files: Files, lines: list[str]
) -> None:
    checked(files)
    result = mlxk2("push", FOLDER, MODEL, "--check-only")
    first, *more = lines
    assert result == (0, "\n".join([f"push (alpha): {MODEL}@main — {first}", *more]) + "\n", "")


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_the_exit_code_is_the_verdict_only_on_request(checked: Checked, mlxk2: Program, form: tuple[str, ...]) -> None:
    for files, code in (({"a.txt": b"1"}, 1), (without(chat_model(), "README.md"), 0)):
        checked(files)
        plain = mlxk2("push", FOLDER, MODEL, "--check-only", *form)
        assert plain.code == 0
        assert mlxk2("push", FOLDER, MODEL, "--check-only", "--exit-code", *form) == (code, plain.out, plain.err)


def test_huggingface_hub_is_not_imported(folder: Path) -> None:
    code = (
        "import sys; from mlxk2.cli.main import main;"
        f"main(['push', {str(folder)!r}, {MODEL!r}, '--check-only', '--json']);"
        "sys.exit('huggingface_hub' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_check_only_works_as_a_separate_process(pusher: Pusher) -> None:
    pusher.write({name: content for name, content in chat_model().items() if isinstance(content, bytes)})
    assert push_data(pusher.spawn("--check-only", "--json", HF_TOKEN=""))["workspace_health"]["healthy"]
    assert pusher.server.log.requests == []
