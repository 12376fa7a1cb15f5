"""`pull` of a damaged model: damaged files are downloaded, sound ones and those of the user stay."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.hub import HubServer
from support.hub.fixtures import Client
from support.layouts import LFS_POINTER, blob_name, chat_model, weights, write
from support.pulling import FOLDER, MODEL, deep_health, pull, pull_error, read_files, requested_files

REFS: dict[str, Callable[[Path, str], object]] = {
    "missing": lambda ref, commit: None,  # noqa: ARG005
    "of another commit": lambda ref, commit: ref.write_text(commit[::-1]),
    "a link out of the cache": lambda ref, commit: ref.symlink_to(_outside(ref, commit)),
    "a pipe": lambda ref, commit: os.mkfifo(ref),  # noqa: ARG005
}


def _outside(ref: Path, commit: str) -> Path:
    """Write a file with the commit beside the cache folder and return its path."""
    outside = ref.parents[3] / "outside"
    outside.write_text(commit)
    return outside


@pytest.mark.parametrize("ref", REFS)
def test_an_invalid_ref_is_repaired(hub_server: HubServer, hub_client: Client, ref: str) -> None:
    commit = hub_server.add(MODEL, chat_model())
    pull(hub_client)
    path = hub_client.cache_dir / FOLDER / "refs" / "main"
    path.unlink()
    REFS[ref](path, commit)
    assert pull(hub_client)["commit_hash"] == commit
    assert (path.is_symlink(), path.read_text()) == (False, commit)


# ---------------------------------------------------------------------------------------------------------- repairs


def _truncate(path: Path) -> None:
    blob = path.resolve()
    data = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(data[:-1])


def _spoil_header(path: Path) -> None:
    _write(path, b"\xff" * path.stat().st_size)


def _write(path: Path, data: bytes) -> None:
    path.resolve().chmod(0o644)
    path.resolve().write_bytes(data)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    _write(path, bytes(data))


def _copy_in(path: Path) -> None:
    data = path.read_bytes()[:-1]
    path.unlink()
    path.write_bytes(data)


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "missing": ("model.safetensors", Path.unlink),
    "dangling": ("config.json", lambda path: path.resolve().unlink()),
    "truncated": ("model.safetensors", _truncate),
    "empty": ("model.safetensors", lambda path: _write(path, b"")),
    "pointer": ("tokenizer.json", lambda path: _write(path, LFS_POINTER)),
    "header": ("model.safetensors", _spoil_header),
    "json": ("config.json", lambda path: _write(path, b"x" * path.stat().st_size)),
    "unseen": ("tokenizer_config.json", _truncate),
    "plain copy": ("config.json", _copy_in),
}


@pytest.mark.parametrize("is_xet", [False, True], ids=["http", "xet"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_repair_downloads_only_damaged_files(
    hub_server: HubServer, hub_client: Client, damage: str, is_xet: bool
) -> None:
    name, spoil = DAMAGES[damage]
    commit = hub_server.add(MODEL, chat_model(), is_xet=is_xet)
    pull(hub_client)
    snapshot = hub_client.cache_dir / FOLDER / "snapshots" / commit
    (snapshot / "mine.txt").write_text("the user's own")
    spoil(snapshot / name)
    hub_server.log.clear()
    data = pull(hub_client)
    assert (data["download_status"], data["commit_hash"]) == ("success", commit)
    assert data["message"].startswith("Repaired org/model") and name in data["message"]
    assert requested_files(hub_server) <= {name}
    assert (snapshot / name).read_bytes() == chat_model()[name]
    assert (snapshot / "mine.txt").read_text() == "the user's own"
    assert deep_health(hub_client) == "Model is healthy"


@pytest.mark.parametrize("is_xet", [False, True], ids=["http", "xet"])
def test_force_finds_a_flipped_bit(hub_server: HubServer, hub_client: Client, is_xet: bool) -> None:
    # Small files are always hashed, large ones only with --force.
    large = chat_model() | {"model.safetensors": weights("F32", (2048, 1200))}
    commit = hub_server.add(MODEL, large, is_xet=is_xet)
    pull(hub_client)
    _flip(hub_client.cache_dir / FOLDER / "snapshots" / commit / "model.safetensors")
    assert pull(hub_client)["download_status"] == "already_exists"
    data = pull(hub_client, MODEL, "--force")
    assert (data["download_status"], "model.safetensors" in data["message"]) == ("success", True)
    assert deep_health(hub_client) == "Model is healthy"
    assert pull(hub_client, MODEL, "--force")["download_status"] == "already_exists"


@pytest.mark.parametrize("is_there", [False, True], ids=["first", "update"])
@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("model.safetensors", _truncate, ()),
        ("model.safetensors", lambda path: _write(path, b""), ()),
        ("tokenizer.json", _flip, ()),
        ("model.safetensors", _flip, ("--force",)),
    ],
    ids=["truncated", "empty", "small", "flipped"],
)
def test_files_of_an_earlier_attempt_are_verified(
    hub_server: HubServer,
    hub_client: Client,
    is_there: bool,
    name: str,
    spoil: Callable[[Path], object],
    words: tuple[str, ...],
) -> None:
    if is_there:
        hub_server.add(MODEL, chat_model() | {"model.safetensors": weights(), "tokenizer.json": b'{"old": 1}'})
        pull(hub_client)
    files = chat_model() | {"model.safetensors": weights("F32", (2048, 1200))}
    commit = hub_server.add(MODEL, files)
    folder = hub_client.cache_dir / (f"{FOLDER}/.incomplete" if is_there else f".{FOLDER}.incomplete")
    staged = folder / "blobs" / blob_name(name, files[name])
    staged.parent.mkdir(parents=True)
    write(staged, files[name])
    spoil(staged)
    assert pull(hub_client, MODEL, *words)["commit_hash"] == commit
    assert (hub_client.cache_dir / FOLDER / "snapshots" / commit / name).read_bytes() == files[name]
    assert deep_health(hub_client) == "Model is healthy"


def test_files_of_an_earlier_attempt_do_not_replace_sound_ones(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model())
    pull(hub_client)
    name = blob_name("config.json", chat_model()["config.json"])
    staged = hub_client.cache_dir / FOLDER / ".incomplete" / "blobs" / name
    staged.parent.mkdir(parents=True)
    staged.write_bytes(b"{}")
    hub_server.add(MODEL, {"notes.txt": b"new"})
    pull(hub_client)
    assert deep_health(hub_client) == "Model is healthy"


def test_leftovers_of_other_downloads_are_removed(hub_server: HubServer, hub_client: Client) -> None:
    commit = hub_server.add(MODEL, chat_model())
    pull(hub_client)
    model = hub_client.cache_dir / FOLDER
    orphan = model / "blobs" / f"{'a' * 64}.12345678.incomplete"
    orphan.write_bytes(b"x" * 1000)
    (model / "snapshots" / commit / "model.safetensors.incomplete").write_bytes(b"x")
    (model / "snapshots" / commit / "gone.txt").symlink_to("../../blobs/gone")
    data = pull(hub_client)
    assert data["download_status"] == "success"
    assert not orphan.exists()
    assert deep_health(hub_client) == "Model is healthy"


def test_leftovers_of_killed_downloads_are_removed_unless_in_use(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model())
    pull(hub_client)
    blobs = hub_client.cache_dir / FOLDER / "blobs"
    dead, alive = (blobs / f"{digit * 64}.12345678.incomplete" for digit in "ab")
    ours = hub_client.cache_dir / FOLDER / ".incomplete" / "blobs" / f"{'c' * 64}.partial"
    ours.parent.mkdir(parents=True)
    for orphan in (dead, alive, ours):
        orphan.write_bytes(b"x" * 1000)
    with (hub_client.cache_dir / ".locks" / FOLDER / f"{'b' * 64}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert pull(hub_client)["download_status"] == "already_exists"
        assert (dead.exists(), alive.exists(), ours.exists()) == (False, True, False)
    assert pull(hub_client)["download_status"] == "already_exists"
    assert not alive.exists()


def test_unneeded_files_are_downloaded_only_with_force(hub_server: HubServer, hub_client: Client) -> None:
    commit = hub_server.add(MODEL, chat_model() | {"original/weights.pth": b"x"})
    pull(hub_client)
    snapshot = hub_client.cache_dir / FOLDER / "snapshots" / commit
    shutil.rmtree(snapshot / "original")
    data = pull(hub_client)
    assert (data["download_status"], "Further files on the hub: 1;" in data["message"]) == ("already_exists", True)
    assert pull(hub_client, MODEL, "--force")["download_status"] == "success"
    assert (snapshot / "original" / "weights.pth").read_bytes() == b"x"


@pytest.mark.parametrize("folder", ["blobs", "snapshots", "refs"])
def test_nothing_is_written_outside_the_cache(
    hub_server: HubServer, hub_client: Client, tmp_path: Path, folder: str
) -> None:
    hub_server.add(MODEL, chat_model())
    pull(hub_client)
    outside = tmp_path / "outside"
    inside = hub_client.cache_dir / FOLDER / folder
    inside.rename(outside)
    inside.symlink_to(outside)
    hub_server.add(MODEL, {"notes.txt": b"new"})
    before = read_files(outside)
    assert pull_error(hub_client, MODEL)["type"] == "OperationError"
    assert read_files(outside) == before


@pytest.mark.parametrize(
    "name",
    [
        "../../../escaped.txt",
        "a\\escaped.txt",
        "\x1b]0;escaped.txt",
        "\nescaped.txt",
        "\u2028escaped.txt",
        "a" * 245 + "escaped.txt",
        "a/" * 400 + "escaped.txt",
    ],
)
def test_hostile_names_of_the_hub_are_refused(hub_server: HubServer, hub_client: Client, name: str) -> None:
    hub_server.add(MODEL, chat_model() | {name: b"x"})
    assert pull_error(hub_client, MODEL)["type"] == "download_failed"
    assert not list(hub_client.home.parent.rglob("*escaped.txt"))


def test_a_repo_without_files_is_an_error(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, {})
    error = pull_error(hub_client, MODEL)
    assert (error["type"], "no files" in error["message"]) == ("download_failed", True)
    assert not list(hub_client.home.rglob("*org--model*"))
