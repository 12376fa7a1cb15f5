"""Pulls without enough disk space, into a read-only cache, and on a terminal."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from support.hub import Fault, HubServer
from support.hub.fixtures import PROGRAM, Client, outcome_of
from support.layouts import chat_model
from support.pulling import ALWAYS, FOLDER, MIB, MODEL, WEIGHTS, big_model, wait_until_sent

pytestmark = pytest.mark.e2e


# -------------------------------------------------------------------------------------------------------- free space


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system with 16 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True, text=True)
        if sys.platform == "linux"
        else None
    )
    if mount is None or mount.returncode:
        pytest.skip("a small file system can't be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_free_space_is_checked_before_the_download(hub_server: HubServer, hub_client: Client, small_disk: Path) -> None:
    hub_server.add(MODEL, big_model(30 * MIB))
    outcome = hub_client.run("pull", MODEL, "--json", HF_HUB_CACHE=str(small_disk / "hub"))
    assert (outcome.code, outcome.json["error"]["type"]) == (1, "OperationError")
    assert "31.5MB needed" in outcome.json["error"]["message"]
    assert "16.8MB available" in outcome.json["error"]["message"]
    assert hub_server.log.count("GET", "/resolve/") == 0


def test_only_missing_files_need_free_space(hub_server: HubServer, hub_client: Client, small_disk: Path) -> None:
    cache = {"HF_HUB_CACHE": str(small_disk / "hub")}
    files = big_model(11 * MIB)
    hub_server.add(MODEL, files)
    assert hub_client.run("pull", MODEL, **cache).code == 0
    commit = hub_server.add(MODEL, {"notes.txt": b"new"})
    assert hub_client.run("pull", MODEL, **cache).code == 0
    # The space of a damaged file counts as free for its replacement.
    weights = small_disk / "hub" / FOLDER / "snapshots" / commit / WEIGHTS
    weights.resolve().write_bytes(b"x" * len(files[WEIGHTS]))
    outcome = hub_client.run("pull", MODEL, **cache)
    assert (outcome.code, weights.read_bytes() == files[WEIGHTS]) == (0, True)


def test_a_disk_that_fills_up_during_a_pull_is_an_error(
    hub_server: HubServer, hub_client: Client, small_disk: Path
) -> None:
    cache = {"HF_HUB_CACHE": str(small_disk / "hub")}
    hub_server.add(MODEL, big_model(12 * MIB))
    hub_server.faults.add(Fault("/objects/", times=ALWAYS, rate=12 * MIB))
    process = hub_client.start("pull", MODEL, "--json", **cache)
    wait_until_sent(hub_server, process, 2 * MIB)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 8 * MIB)
    outcome = outcome_of(process)
    assert (outcome.code, outcome.json["error"]["type"]) == (1, "OperationError")
    assert "disk is full" in outcome.json["error"]["message"]
    assert not list((small_disk / "hub").glob("models--*"))
    filler.unlink()
    hub_server.log.clear()
    assert hub_client.run("pull", MODEL, **cache).code == 0
    assert any(request.start for request in hub_server.log.find("GET", "/objects/"))


def test_a_file_size_limit_is_an_error_that_names_ulimit(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, big_model(8 * MIB))
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({4 * MIB}, {resource.RLIM_INFINITY}));"
    code = f"{limit} import sys; from mlxk2.cli.main import main; sys.exit(main(['pull', '{MODEL}', '--json']))"
    outcome = outcome_of(hub_client.start_command(sys.executable, "-c", code))
    assert (outcome.code, outcome.json["error"]["type"]) == (1, "OperationError")
    assert "ulimit" in outcome.json["error"]["message"]
    assert not list(hub_client.cache_dir.glob("models--*"))


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="needs a folder that even root can't write to")
def test_a_read_only_cache_is_a_permission_error(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model())
    outcome = hub_client.run("pull", MODEL, "--json", HF_HUB_CACHE="/sys/kernel/hub")
    assert (outcome.code, outcome.json["error"]["type"]) == (1, "PermissionError")
    assert "/sys" not in outcome.out


# ----------------------------------------------------------------------------------------------------------- progress


def test_a_terminal_shows_the_progress_of_a_download(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, big_model(8 * MIB))
    hub_server.faults.add(Fault("/objects/", times=ALWAYS, rate=4 * MIB))
    environment = hub_client.environment | {"TERM": "xterm", "COLUMNS": "120"}
    command, *words = (*PROGRAM, "pull", MODEL)
    child = pexpect.spawn(command, words, env=environment, encoding="utf-8", timeout=60, dimensions=(20, 120))
    child.expect(r"org/model.*/8\.4 MB.*MB/s")
    child.expect("Downloaded org/model")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
