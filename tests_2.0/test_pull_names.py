"""`pull` of files, branches and models whose names some disks treat as equal: refused before any download."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.filesystems import mount_ignoring_case
from support.hub import HubServer
from support.hub.fixtures import Client
from support.layouts import chat_model
from support.pulling import FOLDER, MODEL, deep_health, pull, pull_error, read_files

COLLISIONS = {
    "case": ("README.md", "readme.md"),
    "weights": ("MODEL.safetensors", "model.safetensors"),
    "case of a folder": ("Images/a.png", "images/a.png"),
    "case beyond ASCII": ("ÄRGER.txt", "ärger.txt"),
    "full case folding": ("STRASSE.txt", "straße.txt"),
    "a long s": ("ſ.txt", "S.txt"),
    "a ligature": ("ﬁle.txt", "FILE.txt"),
    "an invisible character": ("model.safetensors", "model\u200d.safetensors"),
    "a byte order mark": ("config.json", "\ufeffconfig.json"),
    "a dot at the end": ("config.json", "config.json."),
    "spaces at the end": ("sub/a", "sub /a  "),
    "accents": (unicodedata.normalize("NFC", "é.txt"), unicodedata.normalize("NFD", "é.txt")),
    "accents and case": (unicodedata.normalize("NFC", "É.txt"), unicodedata.normalize("NFD", "é.txt")),
    "a file and a folder": ("config.json", "config.json/x"),
    "a file and a folder, deep": ("a/b", "a/b/c/d"),
    "a file and a folder by case": ("A/x", "a"),
    "weights and a folder": ("model.safetensors", "MODEL.safetensors/x"),
}


@pytest.fixture
def mac_disk(hub_client: Client, tmp_path: Path) -> Iterator[Path]:
    """Yield a cache folder on a disk that ignores case."""
    with mount_ignoring_case(tmp_path / "mac") as place:
        hub_client.environment["HF_HUB_CACHE"] = str(place / "hub")
        hub_client.cache_dir = place / "hub"
        yield hub_client.cache_dir


@pytest.mark.parametrize("names", COLLISIONS.values(), ids=COLLISIONS.keys())
def test_file_names_that_some_disks_treat_as_equal_are_refused(
    hub_server: HubServer, hub_client: Client, names: tuple[str, str]
) -> None:
    hub_server.add(MODEL, chat_model() | {name: name.encode() for name in names})
    error = pull_error(hub_client, MODEL)
    assert error["type"] == "download_failed"
    assert all(repr(name) in error["message"] for name in names)
    assert "Nothing was written" in error["message"]
    assert hub_server.log.count("GET", "/resolve/") == 0
    assert not hub_client.cache_dir.exists()


def test_white_space_around_the_hub_address_is_ignored(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model())
    assert pull(hub_client, HF_ENDPOINT=f" {hub_server.url}\n")["download_status"] == "success"


@pytest.mark.parametrize("size", [1000, 2], ids=["one page", "pages"])
def test_a_file_listed_twice_is_refused(hub_server: HubServer, hub_client: Client, size: int) -> None:
    hub_server.add(MODEL, chat_model() | {"zz.safetensors": b"other bytes"})
    hub_server.hub.page_size = size
    hub_server.hub.changed = lambda listing: [
        entry | {"path": entry["path"].replace("zz", "model")} for entry in listing
    ]
    error = pull_error(hub_client, MODEL)
    assert (error["type"], "'model.safetensors'" in error["message"]) == ("download_failed", True)
    assert hub_server.log.count("GET", "/resolve/") == 0
    assert not hub_client.cache_dir.exists()


@pytest.mark.parametrize("words", [(), ("--force",)], ids=["plain", "force"])
def test_a_cached_model_with_colliding_names_stays_unchanged(
    hub_server: HubServer, hub_client: Client, words: tuple[str, ...]
) -> None:
    # Another program or an earlier version may have made such a mixture.
    commit = hub_server.add(MODEL, chat_model() | {"README.md": b"upper", "other.md": b"lower"})
    pull(hub_client)
    (hub_client.cache_dir / FOLDER / "snapshots" / commit / "readme.md").symlink_to("other.md")
    hub_server.hub.changed = lambda listing: [
        entry | {"path": entry["path"].replace("other.md", "readme.md")} for entry in listing
    ]
    before = read_files(hub_client.cache_dir)
    for _ in range(2):
        error = pull_error(hub_client, MODEL, *words)
        assert "'README.md'" in error["message"] and "'readme.md'" in error["message"]
    assert read_files(hub_client.cache_dir) == before


def test_clone_refuses_colliding_file_names(hub_server: HubServer, hub_client: Client, tmp_path: Path) -> None:
    hub_server.add(MODEL, chat_model() | {"README.md": b"upper", "readme.md": b"lower"})
    outcome = hub_client.run("clone", MODEL, str(tmp_path / "copy"), "--json")
    assert (outcome.code, outcome.json["data"]["clone_status"]) == (1, "pull_failed")
    assert "'readme.md'" in outcome.json["error"]["message"]
    assert not (tmp_path / "copy").exists()


def test_folders_that_differ_only_in_case_are_merged_safely(
    hub_server: HubServer, hub_client: Client, mac_disk: Path
) -> None:
    commit = hub_server.add(MODEL, chat_model() | {"A/x": b"one", "a/y": b"two", "A/z": b"three"})
    pull(hub_client)
    snapshot = mac_disk / FOLDER / "snapshots" / commit
    assert [(snapshot / name).read_bytes() for name in ("A/x", "a/y", "A/z")] == [b"one", b"two", b"three"]
    assert deep_health(hub_client) == "Model is healthy"
    for words in ((), ("--force",)):
        assert pull(hub_client, MODEL, *words)["download_status"] == "already_exists"
    hub_server.add(MODEL, {"a/w": b"four"})
    assert pull(hub_client)["download_status"] == "success"
    assert deep_health(hub_client) == "Model is healthy"


def test_an_update_that_collides_on_a_case_insensitive_disk_is_refused(
    hub_server: HubServer, hub_client: Client, mac_disk: Path
) -> None:
    commit = hub_server.add(MODEL, chat_model() | {"notes.md": b"lower"})
    pull(hub_client)
    assert deep_health(hub_client) == "Model is healthy"
    assert pull(hub_client)["download_status"] == "already_exists"
    hub_server.add(MODEL, {"NOTES.md": b"upper"})
    assert "'NOTES.md'" in pull_error(hub_client, MODEL)["message"]
    assert (mac_disk / FOLDER / "refs" / "main").read_text() == commit
    assert deep_health(hub_client) == "Model is healthy"


def test_models_whose_names_differ_only_in_case_are_refused(
    hub_server: HubServer, hub_client: Client, mac_disk: Path
) -> None:
    hub_server.add(MODEL, chat_model())
    hub_server.add("Org/Model", chat_model() | {"notes.txt": b"another model"})
    pull(hub_client)
    before = read_files(mac_disk / FOLDER)
    error = pull_error(hub_client, "Org/Model")
    assert "already has the folder of org/model in the place of Org/Model" in error["message"]
    assert "mlxk2 pull org/model" in error["hint"]
    assert read_files(mac_disk / FOLDER) == before


@pytest.mark.parametrize(("first", "second"), [("main", "Main"), ("fix/a", "Fix/a"), ("fix/a", "FIX")])
def test_branches_whose_names_differ_only_in_case_are_refused(
    hub_server: HubServer, hub_client: Client, mac_disk: Path, first: str, second: str
) -> None:
    commit = hub_server.add(MODEL, chat_model())
    hub_server.hub.repos[MODEL].branches[first] = commit
    hub_server.add(MODEL, {"notes.txt": b"new"}, branch=second)
    pull(hub_client, f"{MODEL}@{first}")
    error = pull_error(hub_client, f"{MODEL}@{second}")
    assert f"branch {first!r}" in error["message"]
    assert (mac_disk / FOLDER / "refs" / first).read_text() == commit


@pytest.mark.parametrize(("first", "second"), [("fix", "fix/a"), ("fix/a", "fix"), ("fix/a/b", "fix/a")])
def test_branches_of_which_one_would_be_a_folder_are_refused(
    hub_server: HubServer, hub_client: Client, first: str, second: str
) -> None:
    commit = hub_server.add(MODEL, chat_model())
    other = hub_server.add(MODEL, {"notes.txt": b"new"}, branch=second)
    hub_server.hub.repos[MODEL].branches[first] = commit
    pull(hub_client, f"{MODEL}@{first}")
    assert f"branch {first!r}" in pull_error(hub_client, f"{MODEL}@{second}")["message"]
    assert (hub_client.cache_dir / FOLDER / "refs" / first).read_text() == commit
    # A pull by commit needs no ref.
    assert pull(hub_client, f"{MODEL}@{other}")["commit_hash"] == other
    (hub_client.cache_dir / FOLDER / "refs" / first).unlink()
    assert pull(hub_client, f"{MODEL}@{second}")["commit_hash"] == other
