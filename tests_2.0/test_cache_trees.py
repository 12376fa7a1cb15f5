"""Randomly generated caches: files with any bytes and names anywhere, and links to anything.

Every command prints a conforming document, reads nothing outside and changes nothing outside its model. MLXK2_FUZZ
multiplies the number of trees.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.conformance import data_of
from support.filesystems import read_tree
from support.fuzz import EFFORT, HOSTILE_BYTES, HOSTILE_JSON, mutations
from support.layouts import COMMIT, SENTINEL, CacheDir, chat_model, gguf_model, sharded_model

SEED = 20_251_124
NAMES = (
    "hub",
    "models--org--model",
    "models--org--neighbour",
    "models--",
    "models----",
    "models--a",
    "models--a--b--c",
    "models--org--x---y",
    "datasets--a--b",
    "spaces--a--b",
    "version.txt",
    ".locks",
    "blobs",
    "refs",
    "snapshots",
    "main",
    COMMIT,
    COMMIT[:39],
    COMMIT.upper(),
    "0" * 40,
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "README.md",
    "x.gguf",
    "x.incomplete",
    "x.partial",
    "tokenizer_config.json",
    "chat_template.jinja",
    ".no_exist",
    "a b",
    "a\nb",
    "\x1b[31m",
    "é",
    "..x",
    "x" * 255,
    "-rf",
    "{}",
    "\ufeff",
    "models--" + "y" * 240,
)
NO_UTF8 = () if os.uname().sysname == "Darwin" else ("\udcff", "models--\udcff--x", "models--org--\udc80")
TARGETS = ("/etc/passwd", "/", ".", "..", "../..", "nowhere", "/dev/zero", "/proc/self/environ", "x", "../" * 30, "")
SOUND: Sequence[Callable[[], Any]] = (chat_model, sharded_model, gguf_model)
SECRET = b"a secret outside the cache"


def grow(source: random.Random, cache_dir: CacheDir, outside: Path) -> None:
    """Fill a cache with some sound models, then with random entries at random places, then damage some files."""
    for name in source.sample(("org/model", "org/other", "solo", "a/b"), k=source.randrange(3)):
        cache_dir.add(name, source.choice(SOUND)())
    for _ in range(source.randrange(1, 25)):
        place = source.choice([Path(folder) for folder, _, _ in os.walk(cache_dir.path)])
        put(source, place / source.choice(NAMES + NO_UTF8), outside)
    there = sorted(Path(folder, name) for folder, _, names in os.walk(cache_dir.path) for name in names)
    for path in source.sample(there, k=min(len(there), source.randrange(4))):
        if path.name != SENTINEL:
            path.unlink()
            put(source, path, outside)


def put(source: random.Random, path: Path, outside: Path) -> None:
    """Create a random entry at a free path."""
    if os.path.lexists(path) or path.name == SENTINEL:
        return
    kind = source.randrange(8)
    if kind < 3:
        path.mkdir()
    elif kind < 5:
        path.write_bytes(source.choice(HOSTILE_BYTES + HOSTILE_JSON))
    elif kind == 5:
        path.write_bytes(next(mutations(source, source.choice(list(source.choice(SOUND)().values())), 1)))
    elif kind == 6:
        path.symlink_to(source.choice([*filter(None, TARGETS), str(outside), os.path.relpath(outside, path.parent)]))
    else:
        os.mkfifo(path)


@pytest.mark.sampled
@pytest.mark.timeout(300 + 30 * EFFORT)
def test_every_random_cache_gives_consistent_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlxk2: Any
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.json").write_bytes(SECRET)
    kept = read_tree(outside)
    for number in range(10 * EFFORT):
        source = random.Random(SEED + number)
        path = tmp_path / f"tree-{number}" / "hub"
        path.mkdir(parents=True)
        (path / SENTINEL).touch()
        monkeypatch.setenv("HF_HOME", str(path.parent))
        monkeypatch.setenv("HF_HUB_CACHE", str(path))
        grow(source, CacheDir(path), outside)
        try:
            assert_is_answered(mlxk2, path)
        except BaseException as error:
            error.add_note(f"tree {number}: {sorted(os.listdir(path))}")
            raise
        assert read_tree(outside) == kept
        shutil.rmtree(path.parent)


def assert_is_answered(mlxk2: Any, cache_dir: Path) -> None:
    """Fail unless list, health and show agree about a cache, and rm removes exactly what it reports."""
    listed = data_of(mlxk2("list", "--json"), "list")["models"]
    health = data_of(mlxk2("health", "--deep", "--json"), "health")
    assert health["summary"]["total"] == len(listed) == len(health["healthy"]) + len(health["unhealthy"])
    unhealthy = {model["name"] for model in listed if model["health"] == "unhealthy"}
    # Only the deep check finds changed bytes; it also finds everything that the quick check finds.
    assert unhealthy <= {entry["name"] for entry in health["unhealthy"]}
    for words in (["list"], ["list", "--all", "--health", "--verbose"], ["health"]):
        result = mlxk2(*words)
        assert result.code == 0 and "\x1b" not in result.out and SECRET.decode() not in result.out
    # A broken folder name may convert to a path, even to the root of the disk.
    named = [model for model in listed if not model["name"].startswith(("/", "."))]
    for model in named:
        for word in ("show", "rm"):
            options = ["--files", "--config"] if word == "show" else ["--dry-run"]
            result = mlxk2(word, model["name"], *options, "--json")
            assert result.code in (0, 1) and SECRET.decode() not in result.out, result
    for model in named[:1]:
        others = {path.name for path in cache_dir.iterdir()}
        result = mlxk2("rm", model["name"], "--force", "--json")
        gone = others - {path.name for path in cache_dir.iterdir()}
        assert len(gone) <= 1 and (result.code == 1 or gone), result
