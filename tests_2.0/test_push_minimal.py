"""`push`: a folder is uploaded unchanged, in one commit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.hub import Fault
from support.layouts import chat_model, weights
from support.pushing import MODEL, Pusher, push_data

LINE = f"push (alpha): {MODEL}@main — "
FILES: dict[str, bytes] = {n: c for n, c in chat_model().items() if isinstance(c, bytes) and n != ".gitattributes"}


def test_push_creates_a_private_repo_with_all_files(pusher: Pusher) -> None:
    pusher.write(FILES)
    data = pusher.data("--private", "--create")
    assert pusher.remote_files() == FILES
    assert pusher.repo.private
    assert (data["repo_id"], data["branch"], data["created_repo"]) == (MODEL, "main", True)
    assert data["commit_sha"] == pusher.repo.branches["main"]
    assert data["commit_url"] == f"{pusher.server.url}/{MODEL}/commit/{data['commit_sha']}"
    assert data["change_summary"] == {"added": len(FILES), "modified": 0, "deleted": 0}
    assert data["uploaded_files_count"] == data["local_files_count"] == len(FILES)
    assert (data["no_changes"], data["message"]) == (False, f"Pushed: +{len(FILES)} ~0 -0")
    assert (data["experimental"], bool(data["disclaimer"]), data["hf_logs"]) == (True, True, [])
    assert not {"dry_run", "dry_run_summary", "workspace_health", "would_create_repo"} & data.keys()


@pytest.mark.parametrize("transport", ["xet", "http"])
def test_a_push_is_one_commit_over_http_and_xet(pusher: Pusher, transport: str) -> None:
    pusher.add({"old": b"1", "config.json": b"{}"})
    large = {f"model-{number}.safetensors": os.urandom(100_000 + number) for number in range(5)}
    pusher.write(FILES | large)
    before = len(pusher.repo.commits)
    data = push_data(pusher.spawn("--private", "--json", HF_HUB_DISABLE_XET="1" if transport == "http" else ""))
    assert len(pusher.repo.commits) == before + 1
    uploads = pusher.server.log.count("PUT", "/upload/")
    files = pusher.repo.commits[data["commit_sha"]].files.values()
    assert uploads == (0 if transport == "xet" else sum(blob.is_lfs for blob in files))
    assert pusher.remote_files() == FILES | large
    assert data["change_summary"] == {"added": len(FILES | large) - 1, "modified": 1, "deleted": 1}


def test_a_push_without_changes_makes_no_commit(pusher: Pusher) -> None:
    pusher.add(FILES)
    pusher.write(FILES)
    head = pusher.repo.branches["main"]
    data = pusher.data("--private")
    assert (data["no_changes"], data["uploaded_files_count"]) == (True, 0)
    assert (data["commit_sha"], data["commit_url"]) == (None, None)
    assert data["message"].startswith("No files have been modified since last commit")
    assert data["hf_logs"] == [data["message"]]
    assert "change_summary" not in data
    assert (pusher.repo.branches["main"], pusher.write_requests()) == (head, [])


def test_only_changed_files_are_uploaded(pusher: Pusher) -> None:
    large = weights("F32")
    pusher.add(FILES | {"other.safetensors": large})
    pusher.write(FILES | {"other.safetensors": large, "config.json": b'{"changed": true}'})
    assert pusher.data("--private")["change_summary"] == {"added": 0, "modified": 1, "deleted": 0}
    assert [request.path.rpartition("/")[2] for request in pusher.write_requests()] == ["main"]
    assert pusher.remote_files() == pusher.local_files()


def test_a_large_file_is_hashed_only_once(pusher: Pusher) -> None:
    old, new = weights(), weights()[:-1] + b"\0"
    pusher.add({"model.safetensors": old})
    pusher.write({"model.safetensors": new})
    data = push_data(pusher.spawn("--private", "--json", HF_HUB_DISABLE_XET="1"))
    assert (data["change_summary"]["modified"], data["hf_logs"]) == (1, [])
    assert pusher.remote_files() == {"model.safetensors": new}


@pytest.mark.parametrize(
    ("words", "message"), [((), "mlx-knife push"), (("--commit", "My wörds\nand more"), "My wörds\nand more")]
)
def test_the_commit_has_the_given_message(pusher: Pusher, words: tuple[str, ...], message: str) -> None:
    pusher.add({})
    pusher.write({"a": b"1"})
    pusher.data("--private", *words)
    assert pusher.repo.commits[pusher.repo.branches["main"]].message == message


def test_push_changes_only_the_given_branch(pusher: Pusher) -> None:
    pusher.add({"a": b"1"})
    pusher.add({"b": b"2"}, branch="dev/x")
    pusher.write({"b": b"3"})
    data = pusher.data("--private", "--branch", "dev/x")
    assert (data["branch"], data["change_summary"]["deleted"]) == ("dev/x", 1)
    assert (pusher.remote_files("dev/x"), pusher.remote_files()) == ({"b": b"3"}, {"a": b"1"})


def test_files_with_unusual_names_are_pushed(pusher: Pusher) -> None:
    files = {"ä b/c#d?.txt": b"1", "100%.txt": b"2", "a/b/c/d/e": b"3", "~user": b"4", "'\"": b"5", "empty.bin": b""}
    pusher.add({})
    pusher.write(files)
    pusher.data("--private")
    assert pusher.remote_files() == files
    assert pusher.data("--private")["no_changes"]


def test_files_and_folders_can_replace_each_other(pusher: Pusher) -> None:
    pusher.add({"a": b"1", "b/c": b"2"})
    pusher.write({"a/b": b"3", "b": b"4"})
    pusher.data("--private")
    assert pusher.remote_files() == {"a/b": b"3", "b": b"4"}


def test_the_token_is_sent_only_to_the_hub(pusher: Pusher) -> None:
    pusher.add({})
    pusher.write(FILES)
    push_data(pusher.spawn("--private", "--json", HF_HUB_DISABLE_XET="1"))
    assert {request.token for request in pusher.server.log.find(origin="hub")} == {pusher.token}
    assert {request.token for request in pusher.server.log.find(origin="cdn")} == {None}


# --------------------------------------------------------------------------------------------- links and special files


def test_links_to_files_outside_the_folder_are_never_uploaded(pusher: Pusher) -> None:
    (pusher.beside / "secret").write_bytes(b"secret")
    pusher.add({"a": b"1"})
    pusher.write({"a": b"2"})
    (pusher.folder / "x.txt").symlink_to("../secret")
    for words in (("--private",), ("--dry-run",), ("--private", "--create")):
        error = pusher.error(*words)
        assert error["type"] == "push_operation_failed"
        assert "x.txt is a link that leads outside the folder" in error["message"]
    assert (pusher.remote_files(), pusher.write_requests()) == ({"a": b"1"}, [])


def test_a_pipe_is_refused(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    os.mkfifo(pusher.folder / "pipe")
    assert "pipe is not a regular file" in pusher.error("--private", "--create")["message"]
    assert pusher.server.hub.repos == {}


def test_a_pipe_in_place_of_the_ignore_file_is_refused(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    os.mkfifo(pusher.folder / ".hfignore")
    assert pusher.error("--dry-run")["type"] == "push_operation_failed"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser can read everything")
def test_an_unreadable_file_is_an_error(pusher: Pusher) -> None:
    pusher.add({"a": b"1"})
    pusher.write({"a": b"2"})
    (pusher.folder / "a").chmod(0)
    assert pusher.error("--private")["type"] == "push_operation_failed"


def test_links_inside_the_folder_are_uploaded_as_files(pusher: Pusher) -> None:
    pusher.add({})
    pusher.write({"real": b"1"})
    (pusher.folder / "link").symlink_to("real")
    pusher.data("--private")
    assert pusher.remote_files() == {"real": b"1", "link": b"1"}


def test_the_folder_itself_may_be_a_link(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    pusher.add({})
    real = pusher.beside / "elsewhere"
    pusher.folder.rename(real)
    pusher.folder.symlink_to(real)
    pusher.data("--private")
    assert pusher.remote_files() == {"a": b"1"}


# --------------------------------------------------------------------------------------------------------- plain output


def test_plain_output_is_one_line(pusher: Pusher) -> None:
    pusher.write({"a": b"1", "b": b"2"})
    assert pusher.run("--private", "--create").out == f"{LINE}repo created, pushed: +2 ~0 -0\n"
    pusher.write({"a": b"3"})
    assert pusher.run("--private") == (0, f"{LINE}pushed: +0 ~1 -0\n", "")
    assert pusher.run("--private") == (0, f"{LINE}no changes\n", "")
    pusher.write({"a": b"4"})
    out = pusher.run("--private", "--verbose").out
    assert out == f"{LINE}pushed: +0 ~1 -0 — {pusher.server.url}/{MODEL}/commit/{pusher.repo.branches['main']}\n"


def test_plain_output_names_the_obstacle(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    outcome = pusher.run("--private")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(f"Error: {MODEL} is not on the hub")
    assert "--create" in outcome.err


def test_a_refused_upload_changes_nothing(pusher: Pusher) -> None:
    pusher.add({"a": b"1"})
    pusher.write(FILES)
    pusher.server.faults.add(Fault("/upload/", "PUT", status=403))
    outcome = pusher.spawn("--private", "--json", HF_HUB_DISABLE_XET="1")
    assert (outcome.code, outcome.json["error"]["type"]) == (1, "upload_failed")
    assert pusher.remote_files() == {"a": b"1"}
    assert Path(pusher.folder / "model.safetensors").is_file()
