"""`push --dry-run`: exactly what a push would do, by the content's hashes, and nothing is written."""

from __future__ import annotations

import os
from typing import Any

import pytest
from support.layouts import weights
from support.pushing import MODEL, Pusher, UnnamedBlob

# The bytes of a file without any on the disk, whose hash would take minutes.
MINUTES_TO_HASH = 1 << 37
LINE = f"push (experimental): {MODEL}@main — "
BEFORE = {"config.json": b'{"a": 1}', "model.safetensors": weights(), "old.txt": b"old", "same.bin": b"same" * 100}
# Of the same sizes, so that only the content tells.
AFTER = {"config.json": b'{"a": 2}', "model.safetensors": weights()[:-1] + b"\0", "new.txt": b"new", "sub/new": b""}


def changed(pusher: Pusher) -> None:
    """A hub and a folder that differ in each way, in small and in large files."""
    pusher.add(BEFORE | {".gitattributes": b"*.bin filter=lfs\n"})
    pusher.write(AFTER | {"same.bin": BEFORE["same.bin"]})


def test_added_modified_and_deleted_are_counted_by_content(pusher: Pusher) -> None:
    changed(pusher)
    data = pusher.data("--dry-run")
    assert data["dry_run_summary"] == data["change_summary"] == {"added": 2, "modified": 2, "deleted": 1}
    assert (data["added_files"], data["deleted_files"]) == (["new.txt", "sub/new"], ["old.txt"])
    assert (data["dry_run"], data["no_changes"], data["message"]) == (True, False, "Dry-run: +2 ~2 -1")
    assert (data["would_create_repo"], data["would_create_branch"]) == (False, False)
    assert (data["commit_sha"], data["commit_url"], data["uploaded_files_count"]) == (None, None, 0)
    assert (data["local_files_count"], data["repo_url"]) == (5, f"{pusher.server.url}/{MODEL}")
    assert {request.method for request in pusher.server.log.requests} == {"GET"}


def test_a_push_does_what_the_dry_run_said(pusher: Pusher) -> None:
    changed(pusher)
    planned = pusher.data("--dry-run")["dry_run_summary"]
    assert pusher.data("--private")["change_summary"] == planned
    assert pusher.remote_files() == pusher.local_files()
    again = pusher.data("--dry-run")
    assert (again["dry_run_summary"], again["no_changes"]) == ({"added": 0, "modified": 0, "deleted": 0}, True)


def test_people_see_one_line(pusher: Pusher) -> None:
    changed(pusher)
    assert pusher.run("--dry-run") == (0, f"{LINE}dry-run: +2 ~2 -1\n", "")
    names = "  + new.txt\n  + sub/new\n  - old.txt\n"
    assert pusher.run("--dry-run", "--verbose") == (0, f"{LINE}dry-run: +2 ~2 -1\n{names}", "")


def test_no_changes(pusher: Pusher) -> None:
    pusher.add(BEFORE)
    pusher.write(BEFORE)
    data = pusher.data("--dry-run")
    assert (data["no_changes"], data["message"]) == (True, "Dry-run: no changes")
    assert pusher.run("--dry-run").out == f"{LINE}dry-run: no changes\n"


def test_what_the_hub_made_itself_is_no_deletion(pusher: Pusher) -> None:
    pusher.add({".gitattributes": b"made by the hub", "a": b"1"})
    pusher.write({"a": b"1"})
    assert pusher.data("--dry-run")["no_changes"]


def test_what_stays_at_home_is_no_deletion(pusher: Pusher) -> None:
    pusher.add({"a": b"1", "notes/x": b"2", "uv.lock": b"3", "gone": b"4"})
    pusher.write({"a": b"1", ".hfignore": b"notes/\n"})
    data = pusher.data("--dry-run")
    assert (data["added_files"], data["deleted_files"]) == ([".hfignore"], ["gone"])


@pytest.mark.parametrize("branch", ["main", "dev"])
def test_a_repo_that_is_not_there(pusher: Pusher, branch: str) -> None:
    pusher.write(BEFORE)
    data = pusher.data("--dry-run", "--branch", branch, "--create")
    assert (data["would_create_repo"], data["would_create_branch"]) == (True, branch == "dev")
    assert data["dry_run_summary"] == {"added": len(BEFORE), "modified": 0, "deleted": 0}
    assert (data["no_changes"], data["created_repo"], pusher.server.hub.repos) == (False, False, {})


def test_a_branch_that_is_not_there_would_begin_as_main(pusher: Pusher) -> None:
    changed(pusher)
    data = pusher.data("--dry-run", "--branch", "dev/x")
    assert (data["would_create_repo"], data["would_create_branch"]) == (False, True)
    assert data["dry_run_summary"] == {"added": 2, "modified": 2, "deleted": 1}
    assert "--create" in data["message"]
    assert set(pusher.repo.branches) == {"main"}


def unnamed(pusher: Pusher, files: dict[str, bytes]) -> None:
    """Put files on the hub of which it tells no hash."""
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
def test_what_only_the_hub_can_compare_is_not_counted(
    pusher: Pusher, there: dict[str, bytes], here: dict[str, bytes], summary: tuple[Any, ...], text: str
) -> None:
    unnamed(pusher, there)
    pusher.write(here)
    data = pusher.data("--dry-run")
    assert tuple(data["dry_run_summary"].values()) == summary
    assert (data["no_changes"], data["message"]) == (False, f"Dry-run: {text}")
    assert pusher.run("--dry-run").out == f"{LINE}dry-run: {text}\n"


def test_what_only_the_hub_can_compare_is_left_to_it(pusher: Pusher) -> None:
    unnamed(pusher, {"a": b"1"})
    pusher.write({"a": b"1"})
    data = pusher.data("--private")
    assert (data["no_changes"], data["uploaded_files_count"]) == (True, 0)
    pusher.write({"a": b"2"})
    data = pusher.data("--private")
    assert (data["no_changes"], data["uploaded_files_count"]) == (False, None)
    assert pusher.remote_files() == pusher.local_files()


def test_a_listing_of_many_pages(pusher: Pusher) -> None:
    pusher.server.hub.page_size = 7
    pusher.add({f"file-{number}": b"%d" % number for number in range(40)})
    pusher.write({f"file-{number}": b"%d" % number for number in range(1, 41)})
    assert pusher.data("--dry-run")["dry_run_summary"] == {"added": 1, "modified": 0, "deleted": 1}


def test_nothing_to_push(pusher: Pusher) -> None:
    pusher.add({"a": b"1"})
    pusher.write({"uv.lock": b"stays at home"})
    for words in (("--dry-run",), ("--private",)):
        assert pusher.error(*words)["type"] == "push_operation_failed"
    assert pusher.remote_files() == {"a": b"1"}


def test_a_file_is_read_only_where_its_content_matters(pusher: Pusher) -> None:
    pusher.add({"same-size": b"12", "other-size": b"1"})
    pusher.write({"same-size": b"12", "other-size": b"", "new": b""})
    for name in ("other-size", "new"):
        os.truncate(pusher.folder / name, MINUTES_TO_HASH)
    assert pusher.data("--dry-run")["dry_run_summary"] == {"added": 1, "modified": 1, "deleted": 0}
