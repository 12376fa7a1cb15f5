"""`push` with kills, Ctrl-C and hub failures: a branch is at its old commit or at the whole new one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace

import pytest
from support.hub import Fault
from support.hub.fixtures import WAIT_SECONDS
from support.pushing import Pusher, assert_push_document, push_data

pytestmark = pytest.mark.e2e

OLD = {"config.json": b"old", "gone.bin": b"gone" * 1000}
PLAIN_HTTP = {"HF_HUB_DISABLE_XET": "1"}
INVALID_TOKEN = {"x-error-message": "Invalid credentials in Authorization header"}
SLOW = 1.5


@pytest.fixture
def new(pusher: Pusher) -> dict[str, bytes]:
    """Write and return the files that replace `OLD` on the hub: small ones and a few megabytes in large ones."""
    files = {f"model-{number}.safetensors": os.urandom(2_000_000 + number) for number in range(4)}
    files |= {"config.json": b"new", "tokenizer.json": b"{}"}
    pusher.add(OLD)
    pusher.write(files)
    return files


def wait_for(pusher: Pusher, process: subprocess.Popen[str], part: str) -> None:
    """Wait until the hub receives a request for a path that contains `part`."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not pusher.server.log.count(part=part) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("method", "part", "settings"),
    [
        ("GET", "/tree/", PLAIN_HTTP),
        ("POST", "/preupload/", PLAIN_HTTP),
        ("POST", "/objects/batch", PLAIN_HTTP),
        ("PUT", "/upload/", PLAIN_HTTP),
        ("POST", "/commit/", PLAIN_HTTP),
        ("GET", "/xet-write-token/", {}),
        ("POST", "/commit/", {}),
    ],
)
def test_a_killed_push_leaves_the_old_commit_or_the_whole_new_one(
    pusher: Pusher, new: dict[str, bytes], method: str, part: str, settings: Mapping[str, str]
) -> None:
    pusher.server.faults.add(Fault(part, method, after=SLOW))
    process = pusher.start("--private", "--json", **settings)
    wait_for(pusher, process, part)
    time.sleep(random.uniform(0, SLOW * 1.5))
    process.kill()
    process.communicate()
    time.sleep(0.2)
    assert pusher.remote_files() in (OLD, new)
    pusher.server.faults.clear()
    commits = len(pusher.repo.commits)
    was_done = pusher.remote_files() == new
    data = pusher.data("--private")
    assert (data["no_changes"], pusher.remote_files()) == (was_done, new)
    assert len(pusher.repo.commits) == commits + (not was_done)


@pytest.mark.parametrize("settings", [PLAIN_HTTP, {}], ids=["http", "xet"])
def test_ctrl_c_ends_a_push_and_changes_nothing(
    pusher: Pusher, new: dict[str, bytes], settings: Mapping[str, str]
) -> None:
    assert new
    pusher.server.faults.add(Fault("/commit/", "POST", after=SLOW * 4))
    process = pusher.start("--private", "--json", **settings)
    wait_for(pusher, process, "/preupload/")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, err) == (130, "")
    assert_push_document(json.loads(out), "error")
    assert '"interrupted"' in out
    assert pusher.remote_files() == OLD


@pytest.mark.parametrize("settings", [PLAIN_HTTP, {}], ids=["http", "xet"])
def test_a_file_deleted_during_a_push_is_an_error(
    pusher: Pusher, new: dict[str, bytes], settings: Mapping[str, str]
) -> None:
    pusher.server.faults.add(Fault("/preupload/", "POST", after=SLOW))
    process = pusher.start("--private", "--json", **settings)
    wait_for(pusher, process, "/preupload/")
    (pusher.folder / min(new)).unlink()
    (pusher.folder / "model-1.safetensors").unlink()
    out, err = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, err) == (1, "")
    assert_push_document(json.loads(out), "error")
    assert str(pusher.beside) not in out
    assert pusher.remote_files() == OLD


def test_a_push_whose_response_was_lost_can_be_repeated(pusher: Pusher, new: dict[str, bytes]) -> None:
    pusher.server.faults.add(Fault("/commit/", "POST", cut_after=1))
    assert pusher.error("--private")["type"] == "upload_failed"
    assert pusher.remote_files() == new
    assert pusher.data("--private")["no_changes"]


def test_a_hub_that_stops_during_a_push_is_an_error(pusher: Pusher, new: dict[str, bytes]) -> None:
    pusher.server.faults.add(Fault("/commit/", "POST", after=SLOW * 4))
    process = pusher.start("--private", "--json")
    wait_for(pusher, process, "/commit/")
    pusher.server.stop()
    out, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 1
    assert '"upload_failed"' in out
    pusher.server.start()
    pusher.server.faults.clear()
    assert pusher.remote_files() == OLD
    push_data(pusher.spawn("--private", "--json"))
    assert pusher.remote_files() == new


@pytest.mark.parametrize(
    ("fault", "type"),
    [
        (Fault("/revision/", status=401, headers=INVALID_TOKEN), "auth_error"),
        (Fault("/revision/", status=404, headers={"x-error-code": "RepoNotFound"}), "repo_not_found"),
        (Fault("/revision/", status=451), "upload_failed"),
        (Fault("/revision/", cut_after=3), "upload_failed"),
        (Fault("/revision/", extra=-20), "upload_failed"),
        (Fault("/tree/", status=403), "upload_failed"),
        (Fault("/tree/", status=200), "upload_failed"),
        (Fault("/preupload/", "POST", status=403), "upload_failed"),
        (Fault("/preupload/", "POST", status=413), "upload_failed"),
        (Fault("/commit/", "POST", status=429), "upload_failed"),
        (Fault("/commit/", "POST", status=503), "upload_failed"),
        (Fault("/validate-yaml", "POST", status=500), "upload_failed"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.part}{value.status}",
)
def test_errors_of_the_hub_have_their_type_and_change_nothing(pusher: Pusher, fault: Fault, type: str) -> None:
    pusher.add(OLD)
    pusher.write({"README.md": b"# A model", "a": b"1"})
    pusher.server.faults.add(replace(fault))
    error = pusher.error("--private")
    assert error["type"] == type
    assert error["message"]
    assert pusher.remote_files() == OLD


def test_a_dry_run_reports_errors_of_the_hub(pusher: Pusher) -> None:
    pusher.add(OLD)
    pusher.write({"a": b"1"})
    pusher.server.faults.add(Fault("/tree/", status=403))
    assert pusher.error("--dry-run")["type"] == "upload_failed"


def test_two_pushes_at_once_do_not_mix(pusher: Pusher, new: dict[str, bytes]) -> None:
    pusher.server.faults.add(Fault("/preupload/", "POST", after=SLOW, times=2))
    processes = [pusher.start("--private", "--json", "--commit", f"push {number}") for number in range(2)]
    outs = [process.communicate(timeout=WAIT_SECONDS)[0] for process in processes]
    codes = sorted(process.returncode for process in processes)
    # The second push is refused, or starts so late that it finds no changes.
    assert codes in ([0, 1], [0, 0])
    assert sum('"no_changes": false' in out for out in outs) == 1
    assert pusher.remote_files() == new
