"""`pull` with links in the way, or without links: it writes through no link and changes no other model."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.hub import HubServer
from support.hub.fixtures import Client
from support.layouts import blob_name, chat_model, weights
from support.pulling import FOLDER, MODEL, assert_healthy, deep_health, pull, pull_error, read_files, requested_files

GOOD = "good/model"
WEIGHTS = "model.safetensors"
OTHER_BYTES = weights("F32", (300, 300))


def _blob(client: Client, repo_id: str = GOOD) -> Path:
    """Return the path of a model's weights with all links resolved."""
    (path,) = client.cache_dir.glob(f"models--{repo_id.replace('/', '--')}/snapshots/*/{WEIGHTS}")
    return path.resolve()


@pytest.fixture
def good(hub_server: HubServer, hub_client: Client) -> Path:
    """Pull a model and return the path of its weights in the shared store."""
    hub_server.add(GOOD, chat_model(), is_xet=True)
    pull(hub_client, GOOD)
    payload = _blob(hub_client)
    assert payload.parent.parent == hub_client.cache_dir / "blobs"
    return payload


def _hash_of_another(server: HubServer) -> None:
    """Let the hub give the hash of the good model's weights for all large files."""
    good = next(iter(server.hub.repos[GOOD].commits.values())).files[WEIGHTS]
    server.hub.changed = lambda listing: [
        entry | {"xetHash": good.xet_hash} if "xetHash" in entry else entry for entry in listing
    ]


@pytest.mark.parametrize("words", [(), ("--force",)], ids=["plain", "force"])
@pytest.mark.parametrize("data", [OTHER_BYTES, weights()[:-1] + b"E"], ids=["another size", "the same size"])
def test_a_wrong_hash_from_the_hub_changes_no_other_model(
    hub_server: HubServer, hub_client: Client, good: Path, data: bytes, words: tuple[str, ...]
) -> None:
    before = good.read_bytes()
    hub_server.add(MODEL, chat_model() | {WEIGHTS: data}, is_xet=True)
    _hash_of_another(hub_server)
    for _ in range(2):
        pull(hub_client, MODEL, *words)
        assert good.read_bytes() == before
        assert (_blob(hub_client, MODEL).read_bytes(), _blob(hub_client).read_bytes()) == (data, before)
    assert (deep_health(hub_client, GOOD), deep_health(hub_client)) == ("Model is healthy", "Model is healthy")


def test_a_wrong_hash_from_the_hub_is_not_reused_later(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(GOOD, chat_model(), is_xet=True)
    hub_server.add(MODEL, chat_model() | {WEIGHTS: OTHER_BYTES}, is_xet=True)
    _hash_of_another(hub_server)
    pull(hub_client)
    pull(hub_client, GOOD)
    assert _blob(hub_client).read_bytes() == chat_model()[WEIGHTS]
    assert (deep_health(hub_client, GOOD), deep_health(hub_client)) == ("Model is healthy", "Model is healthy")


@pytest.mark.parametrize("words", [(), ("--force",)], ids=["plain", "force"])
def test_wrong_bytes_in_the_shared_store_reach_no_other_model(
    hub_server: HubServer, hub_client: Client, good: Path, words: tuple[str, ...]
) -> None:
    good.chmod(0o644)
    good.write_bytes(good.read_bytes()[:-1] + b"E")
    kept = good.open("rb")
    hub_server.add(MODEL, chat_model() | {"notes.txt": b"another model"}, is_xet=True)
    pull(hub_client, MODEL, *words)
    # A file that another process has open keeps its bytes: it was replaced, not overwritten.
    assert kept.read().endswith(b"E")
    kept.close()
    assert (deep_health(hub_client, GOOD), deep_health(hub_client)) == ("Model is healthy", "Model is healthy")


def test_sound_bytes_in_the_shared_store_are_not_downloaded_again(
    hub_server: HubServer, hub_client: Client, good: Path
) -> None:
    hub_server.add(MODEL, chat_model(), is_xet=True)
    hub_server.log.clear()
    pull(hub_client)
    assert WEIGHTS not in requested_files(hub_server) and hub_server.log.count("GET", "/xet-read-token/") == 0
    assert _blob(hub_client, MODEL) == good


# -------------------------------------------------------------------------------------------------------------- links


def _partial(client: Client) -> Path:
    path = client.cache_dir / f".{FOLDER}.incomplete" / "blobs" / f"{blob_name(WEIGHTS, OTHER_BYTES)}.partial"
    path.parent.mkdir(parents=True)
    return path


def _unfinished(client: Client) -> Path:
    return client.cache_dir / f".{FOLDER}.incomplete"


PLANTED: dict[str, Callable[[Client, Path], object]] = {
    "a partial file is a link": lambda client, good: _partial(client).symlink_to(good),
    "a partial file is a hard link": lambda client, good: os.link(good, _partial(client)),
    "a partial file is a pipe": lambda client, _: os.mkfifo(_partial(client)),
    "a partial file is a folder": lambda client, _: _partial(client).mkdir(),
    "the unfinished model is a link": lambda client, good: _unfinished(client).symlink_to(_model_of(good)),
    "a folder of it is a link": lambda client, good: _linked(_unfinished(client) / "blobs", _model_of(good) / "blobs"),
    "another is a link": lambda client, good: _linked(_unfinished(client) / "snapshots", _model_of(good) / "snapshots"),
    "the new ref is a link": lambda client, good: _linked(_unfinished(client) / ".incomplete-ref", good),
    "the new ref is a hard link": lambda client, good: os.link(good, _made(_unfinished(client)) / ".incomplete-ref"),
}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _linked(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True)
    path.symlink_to(target)


def _model_of(payload: Path) -> Path:
    return payload.parents[2] / "models--good--model"


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED.keys())
def test_a_first_pull_never_writes_through_links(
    hub_server: HubServer, hub_client: Client, good: Path, plant: Callable[[Client, Path], object]
) -> None:
    model, payload = read_files(_model_of(good)), good.read_bytes()
    commit = hub_server.add(MODEL, chat_model() | {WEIGHTS: OTHER_BYTES})
    plant(hub_client, good)
    pull(hub_client)
    assert (read_files(_model_of(good)), good.read_bytes()) == (model, payload)
    assert_healthy(hub_client, commit)


@pytest.mark.parametrize("name", [".incomplete-ref", "refs/main", "refs/fix", "snapshots/COMMIT", ".incomplete"])
def test_an_update_never_writes_through_links(hub_server: HubServer, hub_client: Client, good: Path, name: str) -> None:
    hub_server.add(MODEL, chat_model())
    pull(hub_client)
    commit = hub_server.add(MODEL, {WEIGHTS: OTHER_BYTES}, branch="fix/a")
    hub_server.hub.repos[MODEL].branches["main"] = commit
    path = hub_client.cache_dir / FOLDER / name.replace("COMMIT", commit)
    if path.exists():
        path.unlink()
    part = {"refs/fix": "refs", "snapshots/COMMIT": "snapshots", ".incomplete": "."}.get(name)
    target = _model_of(good) / part if part else good
    if name == "snapshots/COMMIT":
        (target,) = target.iterdir()
        (target / "mine.tmp").write_text("the other model's")
    path.symlink_to(target)
    model, payload = read_files(_model_of(good)), good.read_bytes()
    for branch in ("main", "fix/a"):
        assert pull(hub_client, f"{MODEL}@{branch}")["commit_hash"] == commit
        assert (hub_client.cache_dir / FOLDER / "refs" / branch).read_text() == commit
    assert (read_files(_model_of(good)), good.read_bytes()) == (model, payload)
    assert_healthy(hub_client, commit)


def test_a_model_that_is_a_link_to_another_model_is_refused(
    hub_server: HubServer, hub_client: Client, good: Path
) -> None:
    hub_server.add(MODEL, chat_model() | {WEIGHTS: OTHER_BYTES})
    (hub_client.cache_dir / FOLDER).symlink_to(_model_of(good).name)
    before = read_files(_model_of(good))
    assert "a link to the folder of good/model" in pull_error(hub_client, MODEL)["message"]
    assert read_files(_model_of(good)) == before


@pytest.mark.parametrize("folder", ["blobs", "snapshots", "refs"])
def test_a_model_with_a_folder_linked_to_another_model_is_refused(
    hub_server: HubServer, hub_client: Client, good: Path, folder: str
) -> None:
    hub_server.add(MODEL, chat_model() | {WEIGHTS: OTHER_BYTES})
    pull(hub_client)
    (hub_client.cache_dir / FOLDER / folder).rename(hub_client.cache_dir / FOLDER / "aside")
    (hub_client.cache_dir / FOLDER / folder).symlink_to(_model_of(good) / folder)
    before = read_files(_model_of(good))
    hub_server.add(MODEL, {"notes.txt": b"new"})
    assert "leads out of the model's folder" in pull_error(hub_client, MODEL)["message"]
    assert read_files(_model_of(good)) == before


@pytest.mark.parametrize("place", ["snapshot", "blobs", "staged"])
def test_a_folder_in_place_of_a_file_is_an_error_with_advice(
    hub_server: HubServer, hub_client: Client, place: str
) -> None:
    files = chat_model()
    commit = hub_server.add(MODEL, files)
    pull(hub_client)
    blob = blob_name("config.json", files["config.json"])
    model = hub_client.cache_dir / FOLDER
    entry = model / "snapshots" / commit / "config.json"
    path = {"snapshot": entry, "blobs": model / "blobs" / blob, "staged": model / ".incomplete" / "blobs" / blob}[place]
    (model / "blobs" / blob).unlink()
    if path == entry:
        path.unlink()
    path.mkdir(parents=True)
    (path / "mine.txt").write_text("the user's own")
    error = pull_error(hub_client, MODEL)
    assert (error["type"], "Move that folder away" in error["hint"]) == ("OperationError", True)
    assert (path / "mine.txt").read_text() == "the user's own"
    (path / "mine.txt").unlink()
    assert pull(hub_client)["download_status"] == "success"
    assert deep_health(hub_client) == "Model is healthy"


# ------------------------------------------------------------------------------------------ a file system without links

# Imitates a file system without links: every call that creates a link fails as on such a system.
NO_LINKS = """
import os
def refuse(*_, **__):
    raise OSError(int(os.environ["NO_LINKS"]), "no links here")
os.symlink = os.link = refuse
"""


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EPERM], ids=["ENOTSUP", "EPERM"])
def test_pull_clone_and_push_work_on_a_file_system_without_links(
    hub_server: HubServer, hub_client: Client, tmp_path: Path, number: int
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(NO_LINKS)
    hub_client.environment |= {"PYTHONPATH": str(site), "NO_LINKS": str(number)}
    # The model has two files with the same bytes, one of them in a folder.
    files = chat_model() | {"copy/model.safetensors": chat_model()[WEIGHTS], "notes.txt": b"old"}
    first = hub_server.add(MODEL, files, is_xet=True)
    pull(hub_client)
    snapshot = hub_client.cache_dir / FOLDER / "snapshots" / first
    assert {name: (snapshot / name).read_bytes() for name in files} == files
    assert not [path for path in hub_client.cache_dir.rglob("*") if path.is_symlink()]
    hub_server.log.clear()
    for words in ((), ("--force",)):
        assert pull(hub_client, MODEL, *words)["download_status"] == "already_exists"
    assert not requested_files(hub_server)
    assert deep_health(hub_client) == "Model is healthy"
    (snapshot / WEIGHTS).write_bytes(b"damaged")
    assert pull(hub_client)["download_status"] == "success"
    second = hub_server.add(MODEL, {"notes.txt": b"new"})
    assert pull(hub_client)["commit_hash"] == second
    assert_healthy(hub_client, second)
    _use(hub_client, tmp_path / "clone")
    assert hub_client.run("rm", f"{MODEL}@{first}", "--force").code == 0
    assert not snapshot.exists()
    assert_healthy(hub_client, second)
    assert hub_client.run("rm", MODEL, "--force").code == 0
    assert not list(hub_client.cache_dir.glob(f"*{FOLDER}*"))


def _use(client: Client, copy: Path) -> None:
    """Clone the model, and push the copy."""
    assert client.run("clone", MODEL, str(copy)).code == 0
    assert (copy / WEIGHTS).read_bytes() == (copy / "copy" / WEIGHTS).read_bytes() == chat_model()[WEIGHTS]
    token = client.server.token("someone")
    outcome = client.run("push", str(copy), "someone/copy", "--private", "--create", "--json", HF_TOKEN=token)
    assert outcome.code == 0, outcome
    on_hub: dict[str, Any] = client.run("clone", "someone/copy", f"{copy}-2", "--json", HF_TOKEN=token).json
    assert on_hub["status"] == "success"
    assert read_files(Path(f"{copy}-2")).items() >= read_files(copy).items()
