"""`rm` where the operating system refuses: the message quotes it and says what was removed and what was not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Program, Result
from huggingface_hub.utils import _shared_blobs
from support.conformance import data_of, error_of
from support.filesystems import mount, read_tree
from support.layouts import COMMIT, OTHER_COMMIT, SENTINEL, CacheDir, chat_model

pytestmark = pytest.mark.e2e

NAME = "org/model"
CAPABILITIES = "-chown,-dac_override,-dac_read_search,-fowner"
FILES = chat_model() | {"a.bin": b"a" * 100_000}


def as_user(*words: str, uid: int = 12345) -> Result:
    """Run the program as another user without the rights of root."""
    setpriv = shutil.which("setpriv")
    if setpriv is None or os.getuid() != 0:
        pytest.skip("needs root and setpriv, to become another user")
    command = [setpriv, "--reuid", str(uid), "--clear-groups"]
    command += ["--bounding-set", CAPABILITIES, "--inh-caps", CAPABILITIES, sys.executable, "-m", "mlxk2", *words]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if not done.stdout:
        pytest.skip(f"another user can't run this Python: {done.stderr.strip()[:100]}")
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def open_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[CacheDir]:
    """Yield a cache with a model of two revisions, in a place that every user can reach."""
    place = Path("/tmp") / f"mlxk2-test-{os.getpid()}"
    place.mkdir()
    cache_dir = CacheDir(place / "hub")
    cache_dir.path.mkdir()
    (cache_dir.path / SENTINEL).touch()
    cache_dir.add(NAME, FILES)
    cache_dir.add(NAME, FILES | {"notes.txt": b"other"}, OTHER_COMMIT, ref="dev")
    monkeypatch.setenv("HF_HUB_CACHE", str(cache_dir.path))
    yield cache_dir
    shutil.rmtree(place)


def assert_refused(result: Result, cache_dir: CacheDir, before: dict[str, Any], words: str) -> None:
    """Fail unless nothing was removed and the error says so and why."""
    error = error_of(result, "rm")
    assert error["type"] == "PermissionError"
    assert words in error["message"]
    assert "Nothing of it was removed." in error["message"]
    assert "hint" not in error
    assert read_tree(cache_dir.path) == before


@pytest.mark.parametrize("argument", [NAME, f"{NAME}@{COMMIT}", f"{NAME}@dev"])
def test_rm_in_the_cache_of_another_user_is_refused(open_hub: CacheDir, argument: str) -> None:
    assert_refused(as_user("rm", argument, "--json"), open_hub, read_tree(open_hub.path), "Permission denied")


@pytest.mark.parametrize("argument", [NAME, f"{NAME}@{COMMIT}", f"{NAME}@dev"])
@pytest.mark.parametrize("part", ["", "snapshots"])
def test_rm_of_a_model_without_access_is_refused(open_hub: CacheDir, argument: str, part: str) -> None:
    open_hub.add("org/other", FILES)
    before = read_tree(open_hub.path)
    for folder in (open_hub.path, *(path for path in open_hub.path.rglob("*") if path.is_dir())):
        os.chown(folder, 12345, 12345)
    closed = open_hub.folder(NAME) / part
    os.chown(closed, 0, 0)
    closed.chmod(0o700)
    assert_refused(as_user("rm", argument, "--json"), open_hub, before, "Permission denied")
    assert data_of(as_user("rm", "org/other", "--json"), "rm")["action"] == "deleted"


@pytest.mark.parametrize("argument", [NAME, f"{NAME}@{COMMIT}"])
def test_rm_on_a_read_only_file_system_is_refused(
    tmp_path: Path, mlxk2: Program, monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    with mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs") as disk:
        cache_dir = CacheDir(disk / "hub")
        cache_dir.add(NAME, FILES)
        cache_dir.add(NAME, FILES | {"notes.txt": b"other"}, OTHER_COMMIT, ref="dev")
        (cache_dir.path / SENTINEL).touch()
        (cache_dir.path / ".trash-model-0" / "models--org--old").mkdir(parents=True)
        monkeypatch.setenv("HF_HUB_CACHE", str(cache_dir.path))
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        data_of(mlxk2("rm", argument, "--dry-run", "--json"), "rm")
        assert_refused(mlxk2("rm", argument, "--json"), cache_dir, read_tree(cache_dir.path), "Read-only file system")


@pytest.fixture
def immutable() -> Iterator[Any]:
    """Yield a function that makes files immutable until the test ends."""
    made: list[Path] = []

    def make(path: Path) -> None:
        if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", path], capture_output=True).returncode:
            pytest.skip("chattr +i is not there, or not permitted")
        made.append(path)

    yield make
    for path in made:
        for place in (path, *path.parents[1].glob(f".trash-*/models--org--model/blobs/{path.name}")):
            subprocess.run(["chattr", "-i", place], capture_output=True)


def test_rm_of_an_immutable_model_is_refused(cache_dir: CacheDir, mlxk2: Program, immutable: Any) -> None:
    cache_dir.add(NAME, FILES)
    immutable(cache_dir.folder(NAME))
    assert_refused(mlxk2("rm", NAME, "--json"), cache_dir, read_tree(cache_dir.path), "Operation not permitted")


def test_an_immutable_file_is_named_and_the_rest_removed(cache_dir: CacheDir, mlxk2: Program, immutable: Any) -> None:
    snapshot = cache_dir.add(NAME, FILES)
    blob = (snapshot / "config.json").resolve()
    immutable(blob)
    error = error_of(mlxk2("rm", NAME, "--json"), "rm")
    assert error["type"] == "PermissionError"
    assert error["message"].startswith(f"{NAME} is removed, but not all of its files could be deleted: {blob.name}: ")
    assert "next `mlxk2 rm`" in error["hint"]
    assert mlxk2("list", "--json").json["data"]["models"] == []
    # Everything that could be deleted is gone.
    assert {path.name for path in cache_dir.path.rglob("*") if path.is_file()} == {SENTINEL, ".lock", blob.name}
    (left,) = cache_dir.path.glob(".trash-*/*/blobs/*")
    subprocess.run(["chattr", "-i", left], check=True)
    assert data_of(mlxk2("rm", NAME, "--json"), "rm")["action"] == "deleted"


# ------------------------------------------------------------------------------------------- leftovers of the library


def test_half_written_reference_lists_are_removed(cache_dir: CacheDir, mlxk2: Program) -> None:
    shared = CacheDir(cache_dir.path, "shared")
    for name in (NAME, "org/other"):
        shared.add(name, FILES)
    payload, *_ = _shared_blobs.shared_store_blob_paths(cache_dir.path)
    strange = payload.with_name("notes.refs.tmp")
    for path in (payload.with_name(f"{payload.name}.refs.01234567.tmp"), strange):
        path.write_text("models--org")
    before = read_tree(cache_dir.path)
    data_of(mlxk2("rm", NAME, "--dry-run", "--json"), "rm")
    assert read_tree(cache_dir.path) == before
    data_of(mlxk2("rm", NAME, "--json"), "rm")
    assert list(cache_dir.path.glob("blobs/*/*.tmp")) == [strange]
    assert mlxk2("health", "--deep", "--json").json["data"]["summary"]["healthy_count"] == 1
