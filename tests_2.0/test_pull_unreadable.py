"""`pull` of a model with an unreadable file, because of its mode or a disk error: the file is replaced."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.hub import HubServer
from support.hub.fixtures import PROGRAM, Client, Outcome, outcome_of
from support.layouts import blob_name, chat_model, weights
from support.pulling import FOLDER, MODEL, pull, requested_files

FILES = chat_model() | {"model.safetensors": weights("F32", (2048, 2100))}  # large: checked by its header
WORDS = [(), ("--force",)]

# Imitates a bad sector: reading the file with this inode fails with the error of a disk driver.
BAD_SECTOR = """
import errno, os
def failing(read):
    def wrapper(handle, *args):
        if os.fstat(handle).st_ino == int(os.environ["BAD_INODE"]):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(handle, *args)
    return wrapper
os.read, os.pread = failing(os.read), failing(os.pread)
"""

Run = Callable[..., Outcome]


@pytest.fixture
def ordinary(hub_client: Client) -> Run:
    """Return a function that runs the program as an ordinary user, since root ignores modes."""
    drop: tuple[str, ...] = ()
    if os.geteuid() == 0:
        drop = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all")
        if shutil.which("setpriv") is None:
            pytest.skip("root reads every file, and setpriv is not here to take that right")
    return lambda *words: outcome_of(hub_client.start_command(*drop, *PROGRAM, *words))


@pytest.mark.parametrize("words", WORDS, ids=["plain", "force"])
@pytest.mark.parametrize("is_xet", [False, True], ids=["http", "xet"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_without_read_permission_is_replaced(
    hub_server: HubServer, hub_client: Client, ordinary: Run, name: str, is_xet: bool, words: tuple[str, ...]
) -> None:
    commit = hub_server.add(MODEL, FILES, is_xet=is_xet)
    pull(hub_client)
    path = hub_client.cache_dir / FOLDER / "snapshots" / commit / name
    path.resolve().chmod(0)
    hub_server.log.clear()
    assert "can't be read (Permission denied" in ordinary("health", MODEL).out
    outcome = ordinary("pull", MODEL, *words, "--json")
    assert (outcome.code, outcome.json["data"]["download_status"]) == (0, "success"), outcome
    assert f"Repaired org/model ({commit[:7]}): fetched {name}" in outcome.json["data"]["message"]
    assert requested_files(hub_server) <= {name}
    assert path.read_bytes() == FILES[name]
    assert "Model is healthy" in ordinary("health", MODEL, "--deep", "--json").out


@pytest.mark.parametrize("words", WORDS, ids=["plain", "force"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_on_a_bad_sector_is_replaced(
    hub_server: HubServer, hub_client: Client, tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    commit = hub_server.add(MODEL, FILES)
    pull(hub_client)
    path = hub_client.cache_dir / FOLDER / "snapshots" / commit / name
    bad = _bad_sector(path.resolve(), tmp_path)
    data = pull(hub_client, MODEL, *words, **bad)
    assert f"fetched {name}" in data["message"]
    assert path.read_bytes() == FILES[name]
    assert path.stat().st_ino != int(bad["BAD_INODE"])


def _bad_sector(path: Path, folder: Path) -> dict[str, str]:
    """Return the variables that make reading a file fail."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BAD_SECTOR)
    return {"PYTHONPATH": str(site), "BAD_INODE": str(path.stat().st_ino)}


def test_an_unreadable_partial_download_is_replaced(hub_server: HubServer, hub_client: Client, ordinary: Run) -> None:
    commit = hub_server.add(MODEL, FILES)
    blobs = hub_client.cache_dir / f".{FOLDER}.incomplete" / "blobs"
    blobs.mkdir(parents=True)
    for name, waits in (("config.json", ""), ("model.safetensors", ".partial")):
        path = blobs / (blob_name(name, FILES[name]) + waits)
        path.write_bytes(FILES[name] if not waits else FILES[name][:1000])
        path.chmod(0)
    outcome = ordinary("pull", MODEL, "--json")
    assert outcome.code == 0, outcome
    snapshot = hub_client.cache_dir / FOLDER / "snapshots" / commit
    assert all((snapshot / name).read_bytes() == data for name, data in FILES.items())


def test_an_unreadable_file_stays_until_its_replacement_is_complete(
    hub_server: HubServer, hub_client: Client, ordinary: Run
) -> None:
    # The file may be sound and only unreadable for this user.
    commit = hub_server.add(MODEL, FILES)
    pull(hub_client)
    path = hub_client.cache_dir / FOLDER / "snapshots" / commit / "config.json"
    blob = path.resolve()
    blob.chmod(0)
    on_hub = hub_server.hub.repos[MODEL].commits[commit].files["config.json"]
    object.__setattr__(on_hub, "data", FILES["config.json"].upper())
    assert ordinary("pull", MODEL, "--json").code == 1
    blob.chmod(0o644)
    assert path.read_bytes() == FILES["config.json"]


@pytest.mark.parametrize("folder", ["blobs", ""], ids=["the blobs", "the model"])
def test_a_read_only_folder_is_an_error(hub_server: HubServer, hub_client: Client, ordinary: Run, folder: str) -> None:
    commit = hub_server.add(MODEL, FILES)
    pull(hub_client)
    (hub_client.cache_dir / FOLDER / "snapshots" / commit / "config.json").resolve().chmod(0)
    place = hub_client.cache_dir / FOLDER / folder
    place.chmod(0o555)
    outcome = ordinary("pull", MODEL, "--json")
    place.chmod(0o755)
    error: dict[str, Any] = outcome.json["error"]
    assert (outcome.code, error["type"]) == (1, "PermissionError")
    assert "can't be written (Permission denied; check its owner and its mode)" in error["message"]


def test_every_command_handles_an_unreadable_file(
    hub_server: HubServer, hub_client: Client, ordinary: Run, tmp_path: Path
) -> None:
    """Each file in turn is unreadable for each command that reads a model."""
    hub_server.add(MODEL, chat_model())
    pull(hub_client)
    commands = (
        ("list", "--all"),
        ("show", MODEL, "--files", "--config"),
        ("health", MODEL, "--deep"),
        ("run", MODEL, "hi"),
        ("clone", MODEL, str(tmp_path / "copy")),
        ("push", "--check-only", str(tmp_path / "own"), "someone/model"),
        ("push", "--dry-run", str(tmp_path / "own"), "org/model"),
    )
    own = tmp_path / "own"
    own.mkdir()
    for name, data in chat_model().items():
        (own / name).write_bytes(data)
    for name in ("config.json", "model.safetensors", "README.md"):
        (blob,) = {path.resolve() for path in hub_client.cache_dir.rglob(name)}
        for path in (blob, own / name):
            path.chmod(0)
        for words in commands:
            outcome = ordinary(*words)
            assert outcome.code in (0, 1) and "Unexpected" not in outcome.err, (name, words, outcome)
        for path in (blob, own / name):
            path.chmod(0o644)
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
