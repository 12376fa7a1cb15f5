"""`rm` on a disk that is full to the last block, or that holds no more files: it frees the model, also when killed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from support.conformance import data_of, error_of
from support.filesystems import copy_tree, mount, read_tree
from support.hub.fixtures import Client
from support.killing import Killable, killable
from support.layouts import COMMIT, LAYOUTS, OTHER_COMMIT, SENTINEL, CacheDir, Files, Layout, chat_model, gguf

pytestmark = pytest.mark.e2e

NAME, OTHER = "org/model", "org/other"
STUB = str(Path(__file__).parents[1] / "support" / "fake_disk")
FULL = (errno.ENOSPC, errno.EDQUOT)
BLOCK_BYTES = 1024
FILLER = "filler"
COMMON = chat_model()
# Each revision has a small file, a large one, and a large one that it shares with another model.
OWN: dict[str, Files] = {
    commit: {"own": commit.encode(), "own.bin": commit.encode() * 2000, f"{commit[0]}.gguf": gguf(alignment=alignment)}
    for commit, alignment in ((COMMIT, 64), (OTHER_COMMIT, 128))
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a small disk whose blocks can be counted."""
    make = shutil.which("mkfs.ext4")
    if make is None:
        pytest.skip("mkfs.ext4 is not installed")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(2 << 20)
    options = ["-q", "-m", "0", "-b", str(BLOCK_BYTES), "-O", "^has_journal", "-N", "1024"]
    subprocess.run([make, *options, image], check=True, capture_output=True)
    with mount(tmp_path / "disk", "-o", "loop", str(image)) as place:
        yield place


def two_models(folder: Path, layout: Layout) -> Path:
    """Return a cache with two models, one of them with two revisions."""
    cache_dir = CacheDir(folder, layout)
    cache_dir.path.mkdir()
    (cache_dir.path / SENTINEL).touch()
    cache_dir.add(NAME, COMMON | OWN[OTHER_COMMIT], OTHER_COMMIT, ref="dev")
    cache_dir.add(NAME, COMMON | OWN[COMMIT], COMMIT)
    cache_dir.add(OTHER, COMMON | {"0.gguf": OWN[COMMIT]["0.gguf"]})
    # The library creates its lock files again if the disk has room.
    for lock in cache_dir.path.glob("blobs/*/*.lock"):
        lock.unlink()
    return folder


def fill(folder: Path) -> None:
    """Fill a disk to its last block, and the hub folder with names until it would need a further block."""
    with (folder / FILLER).open("wb", buffering=0) as file:
        for size in (64 * BLOCK_BYTES, BLOCK_BYTES):
            while room_for(lambda: file.write(bytes(size))):  # noqa: B023 - called at once
                pass
    for number in count():
        if not room_for(lambda: (folder / "hub" / f"x{number}").touch()):  # noqa: B023 - called at once
            break
    with (folder / f"{FILLER}-2").open("wb", buffering=0) as file:
        while room_for(lambda: file.write(bytes(BLOCK_BYTES))):
            pass


def room_for(write: Any) -> bool:
    """Write; return whether there was room for it."""
    try:
        write()
    except OSError as error:
        if error.errno not in FULL:
            raise
        return False
    return True


def copy_and_fill(template: Path, disk: Path) -> Path:
    """Copy the template's cache to a disk and fill the disk."""
    for filler in disk.glob(f"{FILLER}*"):
        filler.unlink()
    copy_tree(template, disk / "hub")
    fill(disk)
    return disk / "hub"


def outcome(cache_dir: Path) -> dict[str, Any]:
    """Return the content of a cache without the filler files, the library's lock files and our lock folder."""
    left = read_tree(cache_dir).items()
    return {name: value for name, value in left if name[0] != "x" and name != ".locks" and not name.endswith(".lock")}


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("layout", "argument"),
    [("links", NAME), ("shared", NAME), ("shared", f"{NAME}@{COMMIT}"), ("copies", f"{NAME}@{COMMIT}")],
)
def test_rm_killed_on_a_full_disk_succeeds_when_repeated(
    disk: Path, environment: dict[str, str], tmp_path: Path, layout: Layout, argument: str
) -> None:
    template = two_models(tmp_path / "template", layout)
    cache_dir = copy_and_fill(template, disk)
    with pytest.raises(OSError, match="No space left"):
        (cache_dir / "folder").mkdir()
    with killable(environment | {"HF_HUB_CACHE": str(cache_dir)}) as program:
        freed = data_of(program.run("rm", argument, "--json"), "rm")["freed_bytes"]
        assert freed > 80_000
        assert os.statvfs(disk).f_bfree * BLOCK_BYTES > freed - 8 * BLOCK_BYTES
        after = outcome(cache_dir)
        assert_removed(after, argument)
        for _ in program.kills("rm", argument, prepare=lambda: copy_and_fill(template, disk)):
            assert_whole_or_gone(cache_dir, program, argument)
            again = program.run("rm", argument, "--json")
            if again.code:  # it was killed after its last change
                assert again.json["error"]["type"] in ("model_not_found", "hash_not_found")
            assert outcome(cache_dir) == after


def assert_removed(after: dict[str, Any], argument: str) -> None:
    """Fail if anything of the named model or revision, or any trash, is left."""
    rest = {name for name in after if name.split("/")[0] not in (SENTINEL, "blobs", ".locks", "models--org--other")}
    assert not [name for name in rest if COMMIT in name or "removed" in name or "trash" in name]
    assert bool(rest) == (argument != NAME)


def assert_whole_or_gone(cache_dir: Path, program: Killable, argument: str) -> None:
    """Fail unless every listed model is healthy and each of its revisions is complete."""
    models = {model["name"]: model for model in program.run("list", "--json").json["data"]["models"]}
    assert models.keys() - {NAME} == {OTHER}
    assert argument == NAME or NAME in models
    assert all(model["health"] == "healthy" for model in models.values()), models
    snapshots = cache_dir / "models--org--model" / "snapshots"
    for snapshot in snapshots.iterdir() if snapshots.exists() else ():
        assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == COMMON | OWN[snapshot.name]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("words", [[NAME], [NAME, "--force"], [f"{NAME}@{COMMIT}"]])
def test_rm_works_on_a_disk_that_holds_no_more_files(
    mlxk2: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout, words: list[str]
) -> None:
    with mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=8m,nr_inodes=200", "tmpfs") as place:
        cache_dir = two_models(place / "hub", layout)
        monkeypatch.setenv("HF_HUB_CACHE", str(cache_dir))
        for number in count():
            if not room_for(lambda: (place / str(number)).touch()):  # noqa: B023 - called at once
                break
        data_of(mlxk2("rm", *words, "--json"), "rm")
        assert_removed(outcome(cache_dir), words[0])
        models = mlxk2("list", "--json").json["data"]["models"]
        assert [model["health"] for model in models] == ["healthy"] * (1 if words[0] == NAME else 2)


@pytest.mark.parametrize("answer", ["ENOSPC", "EDQUOT"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("argument", [NAME, f"{NAME}@{COMMIT}"])
def test_rm_works_where_no_folder_can_be_created(
    hub_client: Client, tmp_path: Path, answer: str, layout: Layout, argument: str
) -> None:
    cache_dir = two_models(tmp_path / "hub", layout)
    settings = {"PYTHONPATH": STUB, "MKDIR": answer, "HF_HUB_CACHE": str(cache_dir)}
    planned = data_of(hub_client.run("rm", argument, "--dry-run", "--json", **settings), "rm")
    deleted = data_of(hub_client.run("rm", argument, "--json", **settings), "rm")
    assert deleted["freed_bytes"] == planned["freed_bytes"]
    assert_removed(outcome(cache_dir), argument)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("argument", [NAME, f"{NAME}@{COMMIT}"])
def test_rm_works_on_a_full_disk_with_companion_files(
    hub_client: Client, tmp_path: Path, layout: Layout, argument: str
) -> None:
    cache_dir = two_models(tmp_path / "hub", layout)
    for path in list(cache_dir.rglob("*")):
        (path.parent / f"._{path.name}").write_bytes(b"attributes")
    settings = {"PYTHONPATH": STUB, "MKDIR": "ENOSPC", "HF_HUB_CACHE": str(cache_dir)}
    data_of(hub_client.run("rm", argument, "--json", **settings), "rm")
    for path in cache_dir.rglob("._*"):
        path.unlink()
    assert_removed(outcome(cache_dir), argument)


def test_a_later_rm_keeps_a_model_pulled_after_a_killed_removal(cache_dir: CacheDir, mlxk2: Program) -> None:
    # The state after a removal in place was killed at its start and the model was pulled again at another revision.
    cache_dir.add(NAME, COMMON | OWN[COMMIT], COMMIT)
    (cache_dir.folder(NAME) / "snapshots").rename(cache_dir.folder(NAME) / ".removed")
    assert error_of(mlxk2("show", NAME, "--json"), "show")["type"] == "model_not_found"
    planned = data_of(mlxk2("rm", NAME, "--dry-run", "--json"), "rm")
    assert planned["action"] == "planned"
    cache_dir.add(NAME, COMMON | OWN[OTHER_COMMIT], OTHER_COMMIT)
    error_of(mlxk2("rm", "org/none", "--json"), "rm")
    assert [model["health"] for model in mlxk2("list", "--json").json["data"]["models"]] == ["healthy"]
    assert not list(cache_dir.path.rglob(".removed*"))
    blobs = {path.read_bytes() for path in (cache_dir.folder(NAME) / "blobs").iterdir()}
    assert blobs == set((COMMON | OWN[OTHER_COMMIT]).values())
