"""`push --dry-run`: exactly the changes of a push, found by content hashes, without writing anything."""

from __future__ import annotations

import os
from typing import Any

import pytest
from support.layouts import weights
from support.pushing import MODEL, Pusher, UnnamedBlob

# The size of a sparse file whose hash would take minutes.
MINUTES_TO_HASH = 1 << 37
LINE = f"push (alpha): {MODEL}@main — "
BEFORE = {"config.json": b'{"a": 1}', "model.safetensors": weights(), "old.txt": b"old", "same.bin": b"same" * 100}
# Sizes are equal, so that only the content differs.
AFTER = {"config.json": b'{"a": 2}', "model.safetensors": weights()[:-1] + b"\0", "new.txt": b"new", "sub/new": b""}


def fill_with_changes(pusher: Pusher) -> None:
    """Fill the hub and the folder so that they differ in each way, in small and in large files."""
    pusher.add(BEFORE | {".gitattributes": b"*.bin filter=lfs\n"})
    pusher.write(AFTER | {"same.bin": BEFORE["same.bin"]})


def test_changes_are_counted_by_content(pusher: Pusher) -> None:
    fill_with_changes(pusher)
    data = pusher.data("--dry-run")
    assert data["dry_run_summary"] == data["change_summary"] == {"added": 2, "modified": 2, "deleted": 1}
    assert (data["added_files"], data["deleted_files"]) == (["new.txt", "sub/new"], ["old.txt"])
    assert (data["dry_run"], data["no_changes"], data["message"]) == (True, False, "Dry-run: +2 ~2 -1")
    assert (data["would_create_repo"], data["would_create_branch"]) == (False, False)
    assert (data["commit_sha"], data["commit_url"], data["uploaded_files_count"]) == (None, None, 0)
    assert (data["local_files_count"], data["repo_url"]) == (5, f"{pusher.server.url}/{MODEL}")
    assert {request.method for request in pusher.server.log.requests} == {"GET"}


def test_a_push_does_what_the_dry_run_predicted(pusher: Pusher) -> None:
    fill_with_changes(pusher)
    planned = pusher.data("--dry-run")["dry_run_summary"]
    assert pusher.data("--private")["change_summary"] == planned
    assert pusher.remote_files() == pusher.local_files()
    again = pusher.data("--dry-run")
    assert (again["dry_run_summary"], again["no_changes"]) == ({"added": 0, "modified": 0, "deleted": 0}, True)


def test_plain_output_is_one_line(pusher: Pusher) -> None:
    fill_with_changes(pusher)
    assert pusher.run("--dry-run") == (0, f"{LINE}dry-run: +2 ~2 -1\n", "")
    names = "  + new.txt\n  + sub/new\n  - old.txt\n"
    assert pusher.run("--dry-run", "--verbose") == (0, f"{LINE}dry-run: +2 ~2 -1\n{names}", "")


def test_a_dry_run_without_changes_says_so(pusher: Pusher) -> None:
    pusher.add(BEFORE)
    pusher.write(BEFORE)
    data = pusher.data("--dry-run")
    assert (data["no_changes"], data["message"]) == (True, "Dry-run: no changes")
    assert pusher.run("--dry-run").out == f"{LINE}dry-run: no changes\n"


def test_files_that_the_hub_created_are_not_deleted(pusher: Pusher) -> None:
    pusher.add({".gitattributes": b"made by the hub", "a": b"1"})
    pusher.write({"a": b"1"})
    assert pusher.data("--dry-run")["no_changes"]


def test_ignored_files_are_not_deleted(pusher: Pusher) -> None:
    pusher.add({"a": b"1", "notes/x": b"2", "uv.lock": b"3", "gone": b"4"})
    pusher.write({"a": b"1", ".hfignore": b"notes/\n"})
    data = pusher.data("--dry-run")
    assert (data["added_files"], data["deleted_files"]) == ([".hfignore"], ["gone"])


@pytest.mark.parametrize("branch", ["main", "dev"])
def test_a_missing_repo_would_be_created(pusher: Pusher, branch: str) -> None:
    pusher.write(BEFORE)
    data = pusher.data("--dry-run", "--branch", branch, "--create")
    assert (data["would_create_repo"], data["would_create_branch"]) == (True, branch == "dev")
    assert data["dry_run_summary"] == {"added": len(BEFORE), "modified": 0, "deleted": 0}
    assert (data["no_changes"], data["created_repo"], pusher.server.hub.repos) == (False, False, {})


def test_a_missing_branch_would_begin_at_main(pusher: Pusher) -> None:
    fill_with_changes(pusher)
    data = pusher.data("--dry-run", "--branch", "dev/x")
    assert (data["would_create_repo"], data["would_create_branch"]) == (False, True)
    assert data["dry_run_summary"] == {"added": 2, "modified": 2, "deleted": 1}
    assert "--create" in data["message"]
    assert set(pusher.repo.branches) == {"main"}


def add_without_hashes(pusher: Pusher, files: dict[str, bytes]) -> None:
    """Add files to the hub without their hashes in its listing."""
    pusher.add({})
    pusher.repo.commit({name: UnnamedBlob(content) for name, content in files.items()}, "main", "unnamed")


@pytest.mark.parametrize(
    ("there", "here", "summary", "text"),
    [
        ({"a": b"1"}, {"a": b"1"}, (0, None, 0), "+0 ~? -0"),
        ({"a": b"1"}, {"a": b"2", "b": b""}, (1, None, 0), "+1 ~? -0"),
        ({"a": b"1", "c": b""}, {"a": b"1"}, (0, None, 1), "+0 ~? -1"),
        ({"a": b"1"}, {"a": b"22"}, (0, 1, 0), "+0 ~1 -0"),
    ],
)
def test_files_without_a_hash_are_not_counted(
    pusher: Pusher, there: dict[str, bytes], here: dict[str, bytes], summary: tuple[Any, ...], text: str
) -> None:
    add_without_hashes(pusher, there)
    pusher.write(here)
    data = pusher.data("--dry-run")
    assert tuple(data["dry_run_summary"].values()) == summary
    assert (data["no_changes"], data["message"]) == (False, f"Dry-run: {text}")
    assert pusher.run("--dry-run").out == f"{LINE}dry-run: {text}\n"


def test_files_without_a_hash_are_compared_by_the_hub(pusher: Pusher) -> None:
    add_without_hashes(pusher, {"a": b"1"})
    pusher.write({"a": b"1"})
    data = pusher.data("--private")
    assert (data["no_changes"], data["uploaded_files_count"]) == (True, 0)
    pusher.write({"a": b"2"})
    data = pusher.data("--private")
    assert (data["no_changes"], data["uploaded_files_count"]) == (False, None)
    assert pusher.remote_files() == pusher.local_files()


def test_a_listing_of_many_pages_is_compared_in_full(pusher: Pusher) -> None:
    pusher.server.hub.page_size = 7
    pusher.add({f"file-{number}": b"%d" % number for number in range(40)})
    pusher.write({f"file-{number}": b"%d" % number for number in range(1, 41)})
    assert pusher.data("--dry-run")["dry_run_summary"] == {"added": 1, "modified": 0, "deleted": 1}


def test_a_folder_without_files_to_push_is_an_error(pusher: Pusher) -> None:
    pusher.add({"a": b"1"})
    pusher.write({"uv.lock": b"stays at home"})
    for words in (("--dry-run",), ("--private",)):
        assert pusher.error(*words)["type"] == "push_operation_failed"
    assert pusher.remote_files() == {"a": b"1"}


def test_only_files_of_equal_size_are_hashed(pusher: Pusher) -> None:
    pusher.add({"same-size": b"12", "other-size": b"1"})
    pusher.write({"same-size": b"12", "other-size": b"", "new": b""})
    for name in ("other-size", "new"):
        os.truncate(pusher.folder / name, MINUTES_TO_HASH)
    assert pusher.data("--dry-run")["dry_run_summary"] == {"added": 1, "modified": 1, "deleted": 0}
