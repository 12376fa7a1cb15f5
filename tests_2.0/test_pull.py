"""`pull`: names, revisions, updates, repairs and messages; the program as a process against a local hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.filesystems import mount_tmpfs
from support.hub import HubServer
from support.hub.fixtures import Client
from support.layouts import chat_model
from support.pulling import FOLDER, MODEL, deep_health, pull, pull_error, read_files, requested_files

OTHER_FOLDER = "models--org--other"


# --------------------------------------------------------------------------------------------------- a first download


@pytest.mark.parametrize("is_xet", [False, True], ids=["http", "xet"])
def test_a_pulled_model_has_the_layout_of_huggingface_hub(
    hub_server: HubServer, hub_client: Client, is_xet: bool
) -> None:
    hub_server.hub.page_size = 2
    commit = hub_server.add(MODEL, chat_model() | {"sub/deep/notes.txt": b"notes"}, is_xet=is_xet)
    data = pull(hub_client)
    assert data["download_status"] == "success"
    assert (data["expanded_name"], data["commit_hash"]) == (MODEL, commit)
    assert deep_health(hub_client) == "Model is healthy"
    assert hub_server.log.count("HEAD") == 0
    theirs = hub_client.home.with_name("theirs")
    # The library has one worker here: its first files would race to create the shared store, and some would miss it.
    library = "from huggingface_hub import snapshot_download; snapshot_download('org/model', max_workers=1)"
    hub_client.python(library, HF_HOME=str(theirs))
    kept = (f"{FOLDER}/blobs", f"{FOLDER}/refs", f"{FOLDER}/snapshots", "blobs")
    hubs = (hub_client.cache_dir, theirs / "hub")
    ours, expected = (
        {name: v for name, v in read_files(cache_dir).items() if name.startswith(kept)} for cache_dir in hubs
    )
    assert ours == expected
    assert not [path for path in hub_client.cache_dir.rglob("*") if "incomplete" in path.name or "partial" in path.name]


def test_a_second_pull_downloads_nothing(hub_server: HubServer, hub_client: Client) -> None:
    commit = hub_server.add(MODEL, chat_model())
    pull(hub_client)
    before = read_files(hub_client.cache_dir)
    hub_server.log.clear()
    data = pull(hub_client)
    assert (data["download_status"], data["commit_hash"]) == ("already_exists", commit)
    assert requested_files(hub_server) == set()
    assert read_files(hub_client.cache_dir) == before


def test_plain_output_is_one_sentence(hub_server: HubServer, hub_client: Client) -> None:
    commit = hub_server.add(MODEL, chat_model())
    outcome = hub_client.run("pull", MODEL)
    assert (outcome.code, outcome.out, outcome.err) == (0, f"Downloaded org/model ({commit[:7]}).\n", "")
    outcome = hub_client.run("pull", MODEL)
    assert (outcome.code, outcome.out, outcome.err) == (0, f"org/model is up to date ({commit[:7]}).\n", "")


def test_text_from_the_hub_is_made_safe_for_the_terminal(hub_server: HubServer, hub_client: Client) -> None:
    index = {"weight_map": {"x": "\x1b]0;evil\x07.safetensors"}}
    hub_server.add(MODEL, chat_model() | {"model.safetensors.index.json": json.dumps(index).encode()})
    outcome = hub_client.run("pull", MODEL)
    assert outcome.code == 0
    assert "]0;evil" in outcome.out
    assert "\x1b" not in outcome.out


def test_a_model_unhealthy_on_the_hub_is_downloaded_and_reported(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, {"README.md": b"nothing yet"})
    data = pull(hub_client)
    assert data["download_status"] == "success"
    assert "not healthy: config.json is missing" in data["message"]
    data = pull(hub_client)
    assert data["download_status"] == "already_exists"
    assert "not healthy: config.json is missing" in data["message"]


def test_repos_that_share_a_large_file_keep_it_once(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model(), is_xet=True)
    hub_server.add("org/other", chat_model(), is_xet=True)
    pull(hub_client)
    hub_server.log.clear()
    pull(hub_client, "org/other")
    assert hub_server.log.count("GET", "xet-read-token") == 0
    assert deep_health(hub_client, "org/other") == "Model is healthy"
    manifests = [path.read_text() for path in (hub_client.cache_dir / "blobs").rglob("*.refs")]
    assert manifests and all(FOLDER in text and OTHER_FOLDER in text for text in manifests)


def test_a_model_on_another_disk_shares_no_files(hub_server: HubServer, hub_client: Client, tmp_path: Path) -> None:
    for name in (MODEL, "org/other"):
        hub_server.add(name, chat_model(), is_xet=True)
    with mount_tmpfs(tmp_path / "disk", "16m") as disk:
        pull(hub_client)
        shared = read_files(hub_client.cache_dir / "blobs")
        (hub_client.cache_dir / OTHER_FOLDER).symlink_to(disk)
        pull(hub_client, "org/other")
        assert deep_health(hub_client, "org/other") == "Model is healthy"
        assert not [path for path in (disk / "blobs").iterdir() if path.is_symlink()]
        assert read_files(hub_client.cache_dir / "blobs") == shared


# -------------------------------------------------------------------------------------------------- names, revisions


def test_names_must_match_exactly(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add("mlx-community/model-4bit", chat_model())
    data = pull(hub_client, "model-4bit")
    assert data["expanded_name"] == "mlx-community/model-4bit"
    assert pull_error(hub_client, "model")["type"] == "access_denied"


@pytest.mark.parametrize(
    "name", ["", "org/../model", "org//model", "a/b/c", "org/mo del", "./model", "demo", "x" * 97, "org/model@"]
)
def test_invalid_names_are_refused_without_a_request(hub_server: HubServer, hub_client: Client, name: str) -> None:
    assert pull_error(hub_client, name)["type"] == "ValidationError"
    assert not hub_server.log.requests
    assert not hub_client.cache_dir.exists()


def test_a_revision_can_be_a_branch_a_hash_or_its_prefix(hub_server: HubServer, hub_client: Client) -> None:
    first = hub_server.add(MODEL, chat_model())
    hub_server.add(MODEL, {"notes.txt": b"new"})
    other = hub_server.add(MODEL, {"notes.txt": b"other"}, branch="dev/x")
    refs = hub_client.cache_dir / FOLDER / "refs"
    assert pull(hub_client, f"{MODEL}@{first[:6]}")["commit_hash"] == first
    assert not refs.exists()
    assert pull(hub_client, f"{MODEL}@dev/x")["commit_hash"] == other
    assert (refs / "dev/x").read_text() == other
    assert pull(hub_client, f"{MODEL}@{first}")["download_status"] == "already_exists"
    error = pull_error(hub_client, f"{MODEL}@nowhere")
    assert (error["type"], "nowhere" in error["message"]) == ("download_failed", True)


def test_moving_a_branch_to_a_cached_revision_is_an_update(hub_server: HubServer, hub_client: Client) -> None:
    first = hub_server.add(MODEL, chat_model())
    pull(hub_client)
    second = hub_server.add(MODEL, {"notes.txt": b"new"})
    pull(hub_client, f"{MODEL}@{second}")
    assert (hub_client.cache_dir / FOLDER / "refs" / "main").read_text() == first
    data = pull(hub_client)
    assert (data["download_status"], data["commit_hash"]) == ("success", second)
    assert f"from {first[:7]} to {second[:7]}: no file had to be fetched" in data["message"]
    assert pull(hub_client)["download_status"] == "already_exists"


def test_a_renamed_repo_is_found_by_its_old_name(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model())
    hub_server.rename(MODEL, "new/model")
    assert pull(hub_client)["expanded_name"] == MODEL
    assert deep_health(hub_client) == "Model is healthy"


# ---------------------------------------------------------------------------------------------------------- updates


def test_an_update_downloads_only_changed_files(hub_server: HubServer, hub_client: Client) -> None:
    old = hub_server.add(MODEL, chat_model())
    pull(hub_client)
    new = hub_server.add(MODEL, {"notes.txt": b"new", "README.md": b"changed"}, removed=["tokenizer_config.json"])
    hub_server.log.clear()
    data = pull(hub_client)
    assert (data["download_status"], data["commit_hash"]) == ("success", new)
    assert old[:7] in data["message"] and new[:7] in data["message"]
    assert requested_files(hub_server) == {"notes.txt", "README.md"}
    assert deep_health(hub_client) == "Model is healthy"
    snapshots = hub_client.cache_dir / FOLDER / "snapshots"
    assert (snapshots / old / "README.md").read_bytes() == chat_model()["README.md"]
    assert not (snapshots / new / "tokenizer_config.json").exists()


def test_returning_to_a_cached_revision_downloads_nothing(hub_server: HubServer, hub_client: Client) -> None:
    old = hub_server.add(MODEL, chat_model())
    pull(hub_client)
    hub_server.add(MODEL, {"notes.txt": b"new"})
    pull(hub_client)
    hub_server.hub.repos[MODEL].branches["main"] = old
    hub_server.log.clear()
    assert pull(hub_client)["commit_hash"] == old
    assert requested_files(hub_server) == set()
    assert (hub_client.cache_dir / FOLDER / "refs" / "main").read_text() == old


# ---------------------------------------------------------------------------------------------------- unreachable hubs


def test_without_the_hub_a_healthy_cached_model_is_a_success(hub_server: HubServer, hub_client: Client) -> None:
    commit = hub_server.add(MODEL, chat_model())
    pull(hub_client)
    outcome = hub_client.run("pull", MODEL, "--json", HF_HUB_OFFLINE="1")
    data = outcome.json["data"]
    assert (outcome.code, data["download_status"], data["commit_hash"]) == (0, "already_exists", commit)
    assert "HF_HUB_OFFLINE" in outcome.err
    hub_server.stop()
    outcome = hub_client.run("pull", MODEL, "--json")
    assert (outcome.code, outcome.json["data"]["download_status"]) == (0, "already_exists")
    assert outcome.err.startswith("Warning: The hub could not be reached")
    assert pull_error(hub_client, MODEL, "--force")["type"] == "NetworkError"
    (hub_client.cache_dir / FOLDER / "snapshots" / commit / "config.json").unlink()
    assert pull_error(hub_client, MODEL)["type"] == "NetworkError"


def test_an_ambiguous_revision_needs_the_hub(hub_server: HubServer, hub_client: Client) -> None:
    commit = hub_server.add(MODEL, chat_model())
    pull(hub_client)
    hub_server.stop()
    data = pull(hub_client, f"{MODEL}@{commit[:3]}")
    assert (data["download_status"], data["commit_hash"]) == ("already_exists", commit)
    assert pull_error(hub_client, f"{MODEL}@{commit[:2]}")["type"] == "NetworkError"
    other = commit[:3] + "0" * 37
    snapshots = hub_client.cache_dir / FOLDER / "snapshots"
    (snapshots / other).mkdir()
    assert pull_error(hub_client, f"{MODEL}@{commit[:3]}")["type"] == "NetworkError"


def test_a_missing_model_needs_the_hub(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model())
    error = pull_error(hub_client, MODEL, HF_HUB_OFFLINE="1")
    assert (error["type"], "HF_HUB_OFFLINE" in error["message"]) == ("NetworkError", True)
    assert not hub_client.cache_dir.exists()


def test_other_commands_never_import_huggingface_hub(hub_client: Client) -> None:
    code = (
        "import sys; from mlxk2.cli.main import main; main([{!r}, '--json']);"
        "assert 'huggingface_hub' not in sys.modules"
    )
    for command in ("list", "health"):
        assert json.loads(hub_client.python(code.format(command)))["status"] == "success"
