"""Files that tools and systems leave in a folder do not belong to the model: not to its verdict, size or push."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from support.layouts import (
    LFS_POINTER,
    CacheDir,
    as_json,
    base_model,
    chat_model,
    gguf_model,
    shard_names,
    sharded_model,
    weights,
    without,
    write,
)
from support.pushing import FOLDER, MODEL, Pusher

import mlxk2 as package
from mlxk2.cli.parser import ALPHA_VARIABLE

DEMO = Path(package.__file__).parent / "demo"
SHARDS = shard_names(3)
LEFT_BY: dict[str, dict[str, bytes]] = {
    "hf": {
        ".cache/huggingface/.gitignore": b"*",
        ".cache/huggingface/download/model.safetensors.metadata": b"x",
        ".cache/huggingface/download/model.safetensors.lock": b"",
        ".cache/huggingface/download/3f1a.0a1b2c3d.incomplete": b"x",
        ".cache/huggingface/download/config.json": b"{",
        "sub/.cache/huggingface/download/a.tmp": b"x",
        ".huggingface/download/model.safetensors.incomplete": b"x",
        "model.safetensors.lock": LFS_POINTER,
    },
    "git": {
        ".git/HEAD": b"ref: refs/heads/main",
        ".git/config.json": LFS_POINTER,
        ".git/lfs/tmp/123.tmp": b"x",
        ".git/lfs/objects/aa/bb/model.safetensors": b"",
        "sub/.git": b"gitdir: ../.git/modules/sub",
    },
    "git worktree": {".git": b"gitdir: /elsewhere/.git/worktrees/model"},
    "LM Studio": {"downloading_other.gguf.part": b"GG", ".cache/other.gguf": b"", ".DS_Store": b"x"},
    "macOS": {
        ".DS_Store": b"x",
        "sub/.DS_Store": b"x",
        "._model.safetensors": b"x",
        "sub/._x.gguf": b"x",
        "Icon\r": b"",
        ".fseventsd/a.tmp": b"x",
        ".Spotlight-V100/b.partial": b"x",
        ".Trashes/501/model.gguf": b"",
        ".old.safetensors.icloud": LFS_POINTER,
        ".TemporaryItems/x.incomplete": b"x",
    },
    "Windows": {"Thumbs.db": LFS_POINTER, "Desktop.ini": b"x", "$RECYCLE.BIN/S-1/model.safetensors": b""},
    "Linux": {".Trash-1000/files/model.gguf": b"", "lost+found/x.tmp": b"", ".nfs0001": b"x", "~/a.swp": b"x"},
    "Dropbox": {".dropbox.cache/x.tmp": b"x", ".dropbox": b"x", ".stversions/model.gguf": b""},
    "Python": {
        ".venv/lib/python3/site-packages/x/model.safetensors": b"",
        "venv/a.partial": b"x",
        "__pycache__/a.pyc": b"x",
        ".ipynb_checkpoints/config-checkpoint.json": LFS_POINTER,
        ".mypy_cache/x.tmp": b"x",
    },
    "secrets": {".env": LFS_POINTER, ".ssh/x.tmp": b"x", "key.pem": b"x", ".aws/model.gguf": b""},
}
# Ignored only in a folder that is named by its path; in the cache such files may come from the repo and count.
OF_A_FOLDER = {"model.safetensors.lock", "downloading_other.gguf.part", "~/a.swp", ".mypy_cache/x.tmp"}
SILENT = {"config.json": as_json({"model_type": "llama"}), "model.safetensors": weights(), "README.md": b"# x\n"}
SHAPES: dict[str, dict[str, Any]] = {
    "chat": chat_model(),
    "base": base_model(),
    "sharded": sharded_model(),
    "gguf": gguf_model(),
    "nothing": {},
    "no config": without(chat_model(), "config.json"),
    "bad config": chat_model() | {"config.json": b"{"},
    "no weights": without(chat_model(), "model.safetensors"),
    "empty weights": chat_model() | {"model.safetensors": b""},
    "cut weights": chat_model() | {"model.safetensors": weights()[:-1]},
    "weights that are a pointer": chat_model() | {"model.safetensors": LFS_POINTER},
    "a pointer": chat_model() | {"notes.txt": LFS_POINTER},
    "bad index": sharded_model() | {"model.safetensors.index.json": b"{}"},
    "missing shard": without(sharded_model(), SHARDS[1]),
    "an empty shard and a missing one": without(sharded_model(), SHARDS[2]) | {SHARDS[0]: b""},
    "a missing shard by its number": without(sharded_model(), "model.safetensors.index.json", SHARDS[1]),
    "unfinished": chat_model() | {"model.safetensors.incomplete": b"x"},
    "no tokenizer": without(chat_model(), "tokenizer.json"),
    "no tokenizer, and no sign that the model writes text": SILENT,
    "damaged further down": chat_model() | {"sub/model.safetensors": b"x"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder in the current folder."""
    monkeypatch.setenv(ALPHA_VARIABLE, "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / FOLDER).mkdir()
    return Path(FOLDER)


def put(folder: Path, files: Mapping[str, Any]) -> None:
    """Write files into a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, content)


def shown(mlxk2: Program, model: str = FOLDER) -> dict[str, Any]:
    """Return the output of `show` for a model and its files, without the time."""
    data = mlxk2("show", model, "--files", "--json").json["data"]
    del data["model"]["last_modified"]
    return dict(data)


def assert_one_verdict(mlxk2: Program) -> dict[str, Any]:
    """Fail unless `show`, `health` and `push --check-only` agree on the folder; return the output of `show`."""
    data = shown(mlxk2)
    model = data["model"]
    checked = mlxk2("push", FOLDER, MODEL, "--check-only", "--json").json["data"]
    health = mlxk2("health", FOLDER, "--json").json["data"]
    assert checked["workspace_health"]["healthy"] is (model["health"] == "healthy") is bool(health["healthy"])
    assert checked["workspace_health"]["files_count"] == len(data["files"])
    assert checked["workspace_health"]["total_bytes"] == model["size_bytes"]
    if model["health"] == "unhealthy":
        assert checked["message"] == f"{model['reason']}."
        assert health["unhealthy"][0]["reason"] == model["reason"]
    return data


@pytest.mark.parametrize("shape", SHAPES)
def test_files_of_tools_do_not_change_the_verdict(mlxk2: Program, folder: Path, shape: str) -> None:
    put(folder, SHAPES[shape])
    clean = assert_one_verdict(mlxk2)
    assert (clean["model"]["health"] == "healthy") is (shape in ("chat", "base", "sharded", "gguf"))
    for tool, files in LEFT_BY.items():
        if tool != "git worktree":  # its `.git` is a file, that of a clone a folder
            put(folder, files)
    assert assert_one_verdict(mlxk2) == clean


@pytest.mark.parametrize("kind", ["pipe", "dangling link", "endless link"])
def test_show_and_check_only_agree_on_special_files(mlxk2: Program, folder: Path, kind: str) -> None:
    put(folder, chat_model())
    if kind == "pipe":
        os.mkfifo(folder / "x")
    else:
        (folder / "x").symlink_to("x" if kind == "endless link" else "nowhere")
    assert assert_one_verdict(mlxk2)["model"]["health"] == "unhealthy"
    (folder / ".cache").mkdir()
    (folder / "x").rename(folder / ".cache" / "x")
    assert assert_one_verdict(mlxk2)["model"]["health"] == "healthy"


@pytest.mark.parametrize("tool", [tool for tool in LEFT_BY if tool != "secrets"])
def test_files_of_tools_in_a_snapshot_are_ignored(mlxk2: Program, cache_dir: CacheDir, tool: str) -> None:
    cache_dir.add("org/model", chat_model())
    clean = shown(mlxk2, "org/model")
    snapshot = next((cache_dir.folder("org/model") / "snapshots").iterdir())
    litter = {name: content for name, content in LEFT_BY[tool].items() if name not in OF_A_FOLDER}
    put(snapshot, litter)
    assert shown(mlxk2, "org/model") == clean
    assert mlxk2("list", "--all", "--json").json["data"]["models"][0]["health"] == "healthy"


def test_a_repo_file_that_looks_like_a_secret_counts_in_the_cache(mlxk2: Program, cache_dir: CacheDir) -> None:
    cache_dir.add("org/model", chat_model() | {"uv.lock": b"x", "ca.pem": b"x"})
    names = [file["name"] for file in shown(mlxk2, "org/model")["files"]]
    assert {"uv.lock", "ca.pem"} <= set(names)


@pytest.mark.parametrize("tool", LEFT_BY)
def test_push_uploads_no_files_of_tools(pusher: Pusher, tool: str) -> None:
    files = {"config.json": b"{}", "a/notes.txt": b"x"}
    pusher.add({"config.json": b"{}", ".vscode/settings.json": b"of others"})
    pusher.write(files | LEFT_BY[tool])
    assert pusher.data("--dry-run")["added_files"] == ["a/notes.txt"]
    pusher.data("--private")
    assert pusher.remote_files() == files | {".vscode/settings.json": b"of others"}


def test_a_folder_with_files_of_tools_runs(mlxk2: Program, folder: Path) -> None:
    shutil.copytree(DEMO, folder, dirs_exist_ok=True)
    for tool in ("hf", "git", "macOS", "Python"):
        put(folder, LEFT_BY[tool])
    result = mlxk2("run", FOLDER, "Hi", "--max-tokens", "2", "--json")
    assert (result.code, result.json["data"]["tokens_generated"]) == (0, 2), result
