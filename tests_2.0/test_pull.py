"""`pull`: names, revisions, updates, repairs, and what it says; the program as a process against a local hub."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub import HubServer
from hub.fixtures import Client
from layouts import LFS_POINTER, chat_model, weights
from shapes import assert_envelope

MODEL = "org/model"
FOLDER = "models--org--model"
OTHER_FOLDER = "models--org--other"


def pulled(client: Client, *words: str, **settings: str) -> dict[str, Any]:
    """The data of a pull that succeeds."""
    outcome = client.run("pull", *(words or (MODEL,)), "--json", **settings)
    assert outcome.code == 0, outcome
    assert_envelope(outcome.json, "pull")
    data: dict[str, Any] = outcome.json["data"]
    return data


def failed(client: Client, *words: str, **settings: str) -> dict[str, Any]:
    """The error of a pull that fails."""
    outcome = client.run("pull", *words, "--json", **settings)
    assert outcome.code == 1, outcome
    assert_envelope(outcome.json, "pull", "error")
    assert str(client.home) not in outcome.out
    error: dict[str, Any] = outcome.json["error"]
    return error


def health(client: Client, name: str = MODEL) -> str:
    """The verdict of `health` on a model, every byte read."""
    data = client.run("health", name, "--deep", "--json").json["data"]
    return str((data["healthy"] + data["unhealthy"])[0]["reason"])


def fetched(server: HubServer) -> set[str]:
    """The files whose bytes were asked for."""
    return {request.path.rpartition("/")[2] for request in server.log.of("GET", "/resolve/")}


def tree(folder: Path) -> dict[str, str]:
    """Everything in a folder: where links lead, what files hold."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes().hex()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


# --------------------------------------------------------------------------------------------------- a first download


@pytest.mark.parametrize("is_xet", [False, True], ids=["http", "xet"])
def test_a_model_is_laid_out_as_the_library_does_it(hub_server: HubServer, hub_client: Client, is_xet: bool) -> None:
    hub_server.contents.page_size = 2
    commit = hub_server.add(MODEL, chat_model() | {"sub/deep/notes.txt": b"notes"}, is_xet=is_xet)
    data = pulled(hub_client)
    assert data["download_status"] == "success"
    assert (data["expanded_name"], data["commit_hash"]) == (MODEL, commit)
    assert health(hub_client) == "Model is healthy"
    assert hub_server.log.count("HEAD") == 0
    theirs = hub_client.home.with_name("theirs")
    library = "from huggingface_hub import snapshot_download; snapshot_download('org/model')"
    hub_client.python(library, HF_HOME=str(theirs))
    kept = (f"{FOLDER}/blobs", f"{FOLDER}/refs", f"{FOLDER}/snapshots", "blobs")
    hubs = (hub_client.hub, theirs / "hub")
    ours, expected = ({name: v for name, v in tree(hub).items() if name.startswith(kept)} for hub in hubs)
    assert ours == expected
    assert not [path for path in hub_client.hub.rglob("*") if "incomplete" in path.name or "partial" in path.name]


def test_a_second_pull_downloads_nothing(hub_server: HubServer, hub_client: Client) -> None:
    commit = hub_server.add(MODEL, chat_model())
    pulled(hub_client)
    before = tree(hub_client.hub)
    hub_server.log.clear()
    data = pulled(hub_client)
    assert (data["download_status"], data["commit_hash"]) == ("already_exists", commit)
    assert fetched(hub_server) == set()
    assert tree(hub_client.hub) == before


def test_people_read_one_sentence(hub_server: HubServer, hub_client: Client) -> None:
    commit = hub_server.add(MODEL, chat_model())
    outcome = hub_client.run("pull", MODEL)
    assert (outcome.code, outcome.out, outcome.err) == (0, f"Downloaded org/model ({commit[:7]}).\n", "")
    outcome = hub_client.run("pull", MODEL)
    assert (outcome.code, outcome.out, outcome.err) == (0, f"org/model is up to date ({commit[:7]}).\n", "")


def test_what_the_hub_has_unsound_is_downloaded_and_said(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, {"README.md": b"nothing yet"})
    data = pulled(hub_client)
    assert data["download_status"] == "success"
    assert "not healthy: config.json is missing" in data["message"]
    data = pulled(hub_client)
    assert data["download_status"] == "already_exists"
    assert "not healthy: config.json is missing" in data["message"]


def test_repos_that_share_a_large_file_keep_it_once(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model(), is_xet=True)
    hub_server.add("org/other", chat_model(), is_xet=True)
    pulled(hub_client)
    hub_server.log.clear()
    pulled(hub_client, "org/other")
    assert hub_server.log.count("GET", "xet-read-token") == 0
    assert health(hub_client, "org/other") == "Model is healthy"
    manifests = [path.read_text() for path in (hub_client.hub / "blobs").rglob("*.refs")]
    assert manifests and all(FOLDER in text and OTHER_FOLDER in text for text in manifests)


# -------------------------------------------------------------------------------------------------- names, revisions


def test_names_are_taken_exactly(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add("mlx-community/model-4bit", chat_model())
    data = pulled(hub_client, "model-4bit")
    assert data["expanded_name"] == "mlx-community/model-4bit"
    assert failed(hub_client, "model")["type"] == "access_denied"


@pytest.mark.parametrize(
    "name", ["", "org/../model", "org//model", "a/b/c", "org/mo del", "./model", "demo", "x" * 97, "org/model@"]
)
def test_impossible_names_ask_nobody(hub_server: HubServer, hub_client: Client, name: str) -> None:
    assert failed(hub_client, name)["type"] == "ValidationError"
    assert not hub_server.log.requests
    assert not hub_client.hub.exists()


def test_revisions_are_a_branch_or_a_hash_or_its_beginning(hub_server: HubServer, hub_client: Client) -> None:
    first = hub_server.add(MODEL, chat_model())
    hub_server.add(MODEL, {"notes.txt": b"new"})
    other = hub_server.add(MODEL, {"notes.txt": b"other"}, branch="dev/x")
    refs = hub_client.hub / FOLDER / "refs"
    assert pulled(hub_client, f"{MODEL}@{first[:6]}")["commit_hash"] == first
    assert not refs.exists()
    assert pulled(hub_client, f"{MODEL}@dev/x")["commit_hash"] == other
    assert (refs / "dev/x").read_text() == other
    assert pulled(hub_client, f"{MODEL}@{first}")["download_status"] == "already_exists"
    error = failed(hub_client, f"{MODEL}@nowhere")
    assert (error["type"], "nowhere" in error["message"]) == ("download_failed", True)


def test_a_renamed_repo_is_found_by_its_old_name(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model())
    hub_server.rename(MODEL, "new/model")
    assert pulled(hub_client)["expanded_name"] == MODEL
    assert health(hub_client) == "Model is healthy"


# ---------------------------------------------------------------------------------------------------------- updates


def test_an_update_fetches_only_what_changed(hub_server: HubServer, hub_client: Client) -> None:
    old = hub_server.add(MODEL, chat_model())
    pulled(hub_client)
    new = hub_server.add(MODEL, {"notes.txt": b"new", "README.md": b"changed"}, removed=["tokenizer_config.json"])
    hub_server.log.clear()
    data = pulled(hub_client)
    assert (data["download_status"], data["commit_hash"]) == ("success", new)
    assert old[:7] in data["message"] and new[:7] in data["message"]
    assert fetched(hub_server) == {"notes.txt", "README.md"}
    assert health(hub_client) == "Model is healthy"
    snapshots = hub_client.hub / FOLDER / "snapshots"
    assert (snapshots / old / "README.md").read_bytes() == chat_model()["README.md"]
    assert not (snapshots / new / "tokenizer_config.json").exists()


def test_going_back_to_a_revision_that_is_there_fetches_nothing(hub_server: HubServer, hub_client: Client) -> None:
    old = hub_server.add(MODEL, chat_model())
    pulled(hub_client)
    hub_server.add(MODEL, {"notes.txt": b"new"})
    pulled(hub_client)
    hub_server.contents.repos[MODEL].branches["main"] = old
    hub_server.log.clear()
    assert pulled(hub_client)["commit_hash"] == old
    assert fetched(hub_server) == set()
    assert (hub_client.hub / FOLDER / "refs" / "main").read_text() == old


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
    "missing": ("model.safetensors", lambda path: path.unlink() or path.resolve()),
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
def test_repairs_fetch_only_what_is_bad(
    hub_server: HubServer, hub_client: Client, damage: str, is_xet: bool
) -> None:
    name, spoil = DAMAGES[damage]
    commit = hub_server.add(MODEL, chat_model(), is_xet=is_xet)
    pulled(hub_client)
    snapshot = hub_client.hub / FOLDER / "snapshots" / commit
    (snapshot / "mine.txt").write_text("the user's own")
    spoil(snapshot / name)
    hub_server.log.clear()
    data = pulled(hub_client)
    assert (data["download_status"], data["commit_hash"]) == ("success", commit)
    assert data["message"].startswith("Repaired org/model") and name in data["message"]
    assert fetched(hub_server) <= {name}
    assert (snapshot / name).read_bytes() == chat_model()[name]
    assert (snapshot / "mine.txt").read_text() == "the user's own"
    assert health(hub_client) == "Model is healthy"


@pytest.mark.parametrize("is_xet", [False, True], ids=["http", "xet"])
def test_force_finds_a_flipped_bit(hub_server: HubServer, hub_client: Client, is_xet: bool) -> None:
    # Small files are always hashed, large ones only with --force.
    large = chat_model() | {"model.safetensors": weights("F32", (2048, 1200))}
    commit = hub_server.add(MODEL, large, is_xet=is_xet)
    pulled(hub_client)
    _flip(hub_client.hub / FOLDER / "snapshots" / commit / "model.safetensors")
    assert pulled(hub_client)["download_status"] == "already_exists"
    data = pulled(hub_client, MODEL, "--force")
    assert (data["download_status"], "model.safetensors" in data["message"]) == ("success", True)
    assert health(hub_client) == "Model is healthy"
    assert pulled(hub_client, MODEL, "--force")["download_status"] == "already_exists"


def test_remains_of_other_downloads_are_cleaned_up(hub_server: HubServer, hub_client: Client) -> None:
    commit = hub_server.add(MODEL, chat_model())
    pulled(hub_client)
    model = hub_client.hub / FOLDER
    orphan = model / "blobs" / f"{'a' * 64}.12345678.incomplete"
    orphan.write_bytes(b"x" * 1000)
    (model / "snapshots" / commit / "model.safetensors.incomplete").write_bytes(b"x")
    (model / "snapshots" / commit / "gone.txt").symlink_to("../../blobs/gone")
    data = pulled(hub_client)
    assert data["download_status"] == "success"
    assert not orphan.exists()
    assert health(hub_client) == "Model is healthy"


def test_orphans_of_killed_downloads_go_unless_one_is_alive(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model())
    pulled(hub_client)
    blobs = hub_client.hub / FOLDER / "blobs"
    dead, alive = (blobs / f"{digit * 64}.12345678.incomplete" for digit in "ab")
    ours = hub_client.hub / FOLDER / ".incomplete" / "blobs" / f"{'c' * 64}.partial"
    ours.parent.mkdir(parents=True)
    for orphan in (dead, alive, ours):
        orphan.write_bytes(b"x" * 1000)
    with (hub_client.hub / ".locks" / FOLDER / f"{'b' * 64}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert pulled(hub_client)["download_status"] == "already_exists"
        assert (dead.exists(), alive.exists(), ours.exists()) == (False, True, False)
    assert pulled(hub_client)["download_status"] == "already_exists"
    assert not alive.exists()


def test_files_that_were_never_wanted_come_only_with_force(hub_server: HubServer, hub_client: Client) -> None:
    commit = hub_server.add(MODEL, chat_model() | {"original/weights.pth": b"x"})
    pulled(hub_client)
    snapshot = hub_client.hub / FOLDER / "snapshots" / commit
    shutil.rmtree(snapshot / "original")
    data = pulled(hub_client)
    assert (data["download_status"], "1 further file" in data["message"]) == ("already_exists", True)
    assert pulled(hub_client, MODEL, "--force")["download_status"] == "success"
    assert (snapshot / "original" / "weights.pth").read_bytes() == b"x"


@pytest.mark.parametrize("folder", ["blobs", "snapshots", "refs"])
def test_nothing_is_written_outside_the_cache(
    hub_server: HubServer, hub_client: Client, tmp_path: Path, folder: str
) -> None:
    hub_server.add(MODEL, chat_model())
    pulled(hub_client)
    outside = tmp_path / "outside"
    inside = hub_client.hub / FOLDER / folder
    inside.rename(outside)
    inside.symlink_to(outside)
    hub_server.add(MODEL, {"notes.txt": b"new"})
    before = tree(outside)
    assert failed(hub_client, MODEL)["type"] == "OperationError"
    assert tree(outside) == before


def test_hostile_names_of_the_hub_are_refused(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model() | {"../../../escaped.txt": b"x"})
    assert failed(hub_client, MODEL)["type"] == "download_failed"
    assert not list(hub_client.home.parent.rglob("escaped.txt"))


# ------------------------------------------------------------------------------------------------------- without a hub


def test_a_healthy_model_is_enough_when_the_hub_is_gone(hub_server: HubServer, hub_client: Client) -> None:
    commit = hub_server.add(MODEL, chat_model())
    pulled(hub_client)
    outcome = hub_client.run("pull", MODEL, "--json", HF_HUB_OFFLINE="1")
    data = outcome.json["data"]
    assert (outcome.code, data["download_status"], data["commit_hash"]) == (0, "already_exists", commit)
    assert "HF_HUB_OFFLINE" in outcome.err
    hub_server.stop()
    outcome = hub_client.run("pull", MODEL, "--json")
    assert (outcome.code, outcome.json["data"]["download_status"]) == (0, "already_exists")
    assert outcome.err.startswith("Warning: The hub could not be reached")
    assert failed(hub_client, MODEL, "--force")["type"] == "NetworkError"
    (hub_client.hub / FOLDER / "snapshots" / commit / "config.json").unlink()
    assert failed(hub_client, MODEL)["type"] == "NetworkError"


def test_a_missing_model_needs_the_hub(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model())
    error = failed(hub_client, MODEL, HF_HUB_OFFLINE="1")
    assert (error["type"], "HF_HUB_OFFLINE" in error["message"]) == ("NetworkError", True)
    assert not hub_client.hub.exists()


def test_other_commands_never_load_the_library(hub_client: Client) -> None:
    code = "import sys; from mlxk2.cli import main; main([{!r}, '--json']); assert 'huggingface_hub' not in sys.modules"
    for command in ("list", "health"):
        assert json.loads(hub_client.python(code.format(command)))["status"] == "success"
