"""`rm` as a process: killed before each change, confirmed on a terminal, beside other processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest
from conftest import Program, Result
from support.conformance import data_of, error_of
from support.filesystems import copy_tree, read_tree
from support.hub import Fault, HubServer, fixtures
from support.hub.fixtures import Client
from support.killing import Killable, killable
from support.layouts import COMMIT, LAYOUTS, OTHER_COMMIT, CacheDir, Files, chat_model, gguf, gguf_model
from support.tiny_models import say, write_chain

from mlxk2.cache import locks

pytestmark = pytest.mark.e2e

NAME, OTHER = "org/model", "org/other"
COMMAND = (sys.executable, "-m", "mlxk2", "rm")
WAIT_SECONDS = 60

COMMON = gguf_model("model.gguf")
# Each revision has a small file, a large one, and a large one that it shares with another model.
OWN: dict[str, Files] = {
    commit: {"own": commit.encode(), "own.bin": commit.encode() * 99, f"{commit[0]}.gguf": gguf(alignment=alignment)}
    for commit, alignment in ((COMMIT, 64), (OTHER_COMMIT, 128))
}


def start(cache_dir: Path, *words: str) -> subprocess.Popen[str]:
    """Start `rm` on a cache."""
    environment = {**os.environ, "HF_HUB_CACHE": str(cache_dir), "MLXK2_STRICT_TEST_DELETE": "1"}
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *words, "--json"], env=environment, text=True, **streams)


def wait_for_result(process: subprocess.Popen[str]) -> Result:
    """Wait for a started `rm` and return its result."""
    out, err = process.communicate(timeout=WAIT_SECONDS)
    return Result(process.returncode, out, err)


def outcome(cache_dir: Path) -> dict[str, Any]:
    """Return the content of a cache without the lock files that the library leaves in its store."""
    return {name: value for name, value in read_tree(cache_dir).items() if not name.endswith(".lock")}


@pytest.fixture(params=LAYOUTS)
def template(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a cache to copy for every kill: two models, one of them with two revisions."""
    cache_dir = CacheDir(tmp_path / "template", request.param)
    cache_dir.path.mkdir()
    (cache_dir.path / "TEST_SENTINEL").touch()
    cache_dir.add(NAME, COMMON | OWN[OTHER_COMMIT], OTHER_COMMIT, ref="dev")
    cache_dir.add(NAME, COMMON | OWN[COMMIT], COMMIT)
    cache_dir.add(OTHER, COMMON | {"0.gguf": OWN[COMMIT]["0.gguf"]})
    (cache_dir.path / ".locks" / "models--org--model").mkdir(parents=True)
    (cache_dir.path / ".locks" / "models--org--model" / "stale.lock").touch()
    return cache_dir.path


@pytest.mark.sampled
@pytest.mark.parametrize("argument", [NAME, f"{NAME}@{COMMIT}"])
def test_rm_killed_at_any_step_succeeds_when_repeated(
    template: Path, environment: dict[str, str], argument: str, tmp_path: Path
) -> None:
    cache_dir = copy_tree(template, tmp_path / "hub")
    with killable(environment | {"HF_HUB_CACHE": str(cache_dir)}) as program:
        data_of(program.run("rm", argument, "--json"), "rm")
        after = outcome(cache_dir)
        for _ in program.kills("rm", argument, prepare=lambda: copy_tree(template, cache_dir)):
            assert_whole_or_gone(cache_dir, program, argument)
            again = program.run("rm", argument, "--json")
            if again.code == 0:
                assert data_of(again, "rm")["action"] == "deleted"
            else:  # it was killed after its last change
                assert again.json["error"]["type"] in ("model_not_found", "hash_not_found")
            assert outcome(cache_dir) == after


def assert_whole_or_gone(cache_dir: Path, program: Killable, argument: str) -> None:
    """Fail unless every listed model is healthy and each of its revisions is complete."""
    models = {model["name"]: model for model in program.run("list", "--json").json["data"]["models"]}
    assert models.keys() - {NAME} == {OTHER}
    if argument != NAME:
        assert NAME in models
    assert all(model["health"] == "healthy" for model in models.values())
    snapshots = cache_dir / "models--org--model" / "snapshots"
    for snapshot in snapshots.iterdir() if snapshots.exists() else ():
        content = {path.name: path.read_bytes() for path in snapshot.iterdir()}
        assert content == COMMON | OWN[snapshot.name]


def test_the_other_revision_still_runs_after_rm(cache_dir: CacheDir, tmp_path: Path, mlxk2: Program) -> None:
    folder = write_chain(tmp_path / "chain", say("Par", "is", "!"))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    cache_dir.add(NAME, files)
    cache_dir.add(NAME, files | {"README.md": b"# Another\n"}, OTHER_COMMIT, ref="dev")
    data_of(mlxk2("rm", f"{NAME}@{COMMIT}", "--json"), "rm")
    command = [sys.executable, "-m", "mlxk2", "run", NAME, "Capital?", "--temperature", "0"]
    said = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (said.returncode, said.stdout.strip()) == (0, "Paris!"), said


@pytest.mark.parametrize(
    ("name", "answer", "code"),
    [
        ("mod", "y", 0),
        ("mod", "yes", 0),
        ("mod", "n", 1),
        ("mod", "", 1),
        ("mod", "yesterday", 1),
        (NAME, "y", 0),
        (NAME, "", 1),
        (f"{NAME}@{COMMIT}", "n", 1),
    ],
)
def test_rm_asks_for_confirmation_on_a_terminal(cache_dir: CacheDir, name: str, answer: str, code: int) -> None:
    cache_dir.add(NAME, chat_model())
    child = pexpect.spawn(sys.executable, ["-m", "mlxk2", "rm", name], encoding="utf-8", timeout=WAIT_SECONDS)
    child.expect_exact("[y/N] ")
    assert f"Delete {NAME} (revision" in child.before
    assert ("part of a name" in child.before) == (name == "mod")
    child.sendline(answer)
    child.expect(pexpect.EOF)
    child.close()
    assert "[y/N]" not in child.before
    assert (child.exitstatus, cache_dir.folder(NAME).exists()) == (code, code == 1)


@pytest.mark.parametrize("words", ["mod -y", f"{NAME} --yes", f"{NAME} --force", f"{NAME} --json", f"{NAME} --dry-run"])
def test_force_and_yes_replace_the_question_on_a_terminal(cache_dir: CacheDir, words: str) -> None:
    cache_dir.add(NAME, chat_model())
    command = ["-m", "mlxk2", "rm", *words.split()]
    child = pexpect.spawn(sys.executable, command, encoding="utf-8", timeout=WAIT_SECONDS)
    child.expect(pexpect.EOF)
    child.close()
    assert "[y/N]" not in child.before
    assert (child.exitstatus, cache_dir.folder(NAME).exists()) == (0, "--dry-run" in words)


def test_concurrent_removals_delete_a_model_once(cache_dir: CacheDir) -> None:
    CacheDir(cache_dir.path, "shared").add(NAME, COMMON | OWN[COMMIT])
    results = [wait_for_result(process) for process in [start(cache_dir.path, NAME) for _ in range(4)]]
    kinds = sorted("deleted" if result.code == 0 else result.json["error"]["type"] for result in results)
    assert kinds.count("deleted") == 1, results
    assert set(kinds) <= {"deleted", "model_not_found", "locks_present"}
    assert {entry.name for entry in cache_dir.path.iterdir()} <= {"TEST_SENTINEL", "blobs", ".locks"}


def test_rm_refuses_a_model_that_is_being_pulled(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(NAME, COMMON)
    assert hub_client.run("pull", NAME).code == 0
    hub_server.add(NAME, {"big.bin": b"x" * 1_000_000})
    hub_server.faults.add(Fault("/resolve/", after=2, times=99))
    pull = hub_client.start("pull", NAME, "--json")
    lock = hub_client.cache_dir / ".locks" / "models--org--model" / locks.PULL_LOCK
    while not (hub_client.cache_dir / "models--org--model" / ".incomplete").exists():
        assert pull.poll() is None
        time.sleep(0.005)
    error = error_of(hub_client.run("rm", NAME, "--json"), "rm")
    assert error["type"] == "locks_present"
    assert error["data"]["lock_files"] == [str(lock.relative_to(hub_client.cache_dir))]
    hub_server.faults.clear()
    assert data_of(fixtures.outcome_of(pull), "pull")["download_status"] == "success"
    data_of(hub_client.run("rm", NAME, "--json"), "rm")
    assert not lock.parent.exists()


def test_rm_keeps_shared_bytes_that_a_running_pull_needs(hub_server: HubServer, hub_client: Client) -> None:
    for name in (NAME, OTHER):
        hub_server.add(name, COMMON, is_xet=True)
    assert hub_client.run("pull", NAME).code == 0
    hub_server.add(OTHER, {"slow.bin": b"x" * 1_000_000})
    hub_server.faults.add(Fault("/objects/", times=1, rate=500_000))
    pull = hub_client.start("pull", OTHER, "--json")
    while not list(hub_client.cache_dir.glob(".models--org--other.incomplete/blobs/*.partial")):
        assert pull.poll() is None
        time.sleep(0.005)
    data_of(hub_client.run("rm", NAME, "--json"), "rm")
    assert pull.poll() is None
    assert data_of(fixtures.outcome_of(pull), "pull")["download_status"] == "success"
    assert hub_client.run("health", OTHER, "--deep", "--json").json["data"]["unhealthy"] == []
