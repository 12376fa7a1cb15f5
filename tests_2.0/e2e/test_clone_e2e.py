"""`clone` as a process: killed before each change, interrupted, from the cache and from the hub; its clones run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Program, Result
from support.conformance import data_of, error_of
from support.filesystems import read_tree
from support.hub import Fault, HubServer
from support.hub.fixtures import PROGRAM, Client, outcome_of
from support.killing import killable
from support.layouts import LAYOUTS, SENTINEL, CacheDir, Layout, chat_model
from support.tiny_models import say, write_chain

pytestmark = pytest.mark.e2e

NAME = "org/model"
LARGE = 16 << 20
COPY_SECONDS = 0.04
OFFLINE = {"HF_ENDPOINT": "http://127.0.0.1:9", "MLXK2_ENABLE_ALPHA_FEATURES": "1"}
MODEL = chat_model() | {f"file-{i}.txt": b"%d" % i for i in range(50)} | {"big.bin": bytes(range(256)) * (LARGE >> 8)}


def content(folder: Path) -> dict[str, Any]:
    """Return the files of a folder."""
    return {name: value for name, value in read_tree(folder).items() if value is not None}


def empty(folder: Path) -> None:
    """Empty a folder."""
    shutil.rmtree(folder)
    folder.mkdir()


def wait_for(folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a process has begun to build in a folder, or has ended."""
    while process.poll() is None and not os.listdir(folder):
        time.sleep(0.0005)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return an empty folder in which the clones are made."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module", params=LAYOUTS)
def cached(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home with the model in its cache, in each layout."""
    home = tmp_path_factory.mktemp(request.param)
    (home / "hub").mkdir()
    (home / "hub" / SENTINEL).touch()
    layout: Layout = request.param
    CacheDir(home / "hub", layout).add(NAME, MODEL)
    return home


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    """Start a clone of what is in a home's cache, without a hub."""
    environment = {**os.environ, **OFFLINE, "HF_HUB_CACHE": str(home / "hub")}
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*PROGRAM, "clone", *words, "--json"], env=environment, text=True, **streams)


@pytest.mark.sampled
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_clone_killed_at_any_step_succeeds_when_repeated(
    layout: Layout, environment: dict[str, str], work: Path
) -> None:
    model = chat_model() | {"sub/notes.txt": b"notes"}
    cache_dir = Path(environment["HF_HUB_CACHE"])
    CacheDir(cache_dir, layout).add(NAME, model)
    before, target = read_tree(cache_dir), work / "mine"
    with killable(environment | OFFLINE) as program:
        for _ in program.kills("clone", NAME, str(target), prepare=lambda: empty(work)):
            assert read_tree(cache_dir) == before
            assert all(path.name == "mine" or path.name.startswith(".mlxk2-clone-") for path in work.iterdir())
            again = program.run("clone", NAME, str(target), "--json")
            if again.code:  # it was killed after its last change
                assert error_of(again, "clone")["type"] == "InvalidTargetError"
            else:
                assert list(work.iterdir()) == [target]
            assert content(target) == model
        data = program.run("health", "--json").json["data"]
    assert read_tree(cache_dir) == before
    assert data["summary"] == {"total": 1, "healthy_count": 1, "unhealthy_count": 0}


@pytest.mark.sampled
def test_a_killed_clone_keeps_files_of_macos_in_the_target(environment: dict[str, str], work: Path) -> None:
    model, target = chat_model(), work / "mine"
    CacheDir(Path(environment["HF_HUB_CACHE"])).add(NAME, model)

    def prepare() -> None:
        empty(work)
        target.mkdir()
        (target / ".DS_Store").write_bytes(b"of the user")

    with killable(environment | OFFLINE) as program:
        for _ in program.kills("clone", NAME, str(target), prepare=prepare):
            again = program.run("clone", NAME, str(target), "--json")
            if again.code:  # it was killed after the model was moved into place
                assert error_of(again, "clone")["type"] == "InvalidTargetError"
                assert [path.read_bytes() for path in work.rglob(".DS_Store")] == [b"of the user"]
                continue
            assert list(work.iterdir()) == [target]
            assert content(target) == model | {".DS_Store": b"of the user"}


@pytest.mark.parametrize("is_xet", [False, True])
def test_an_uncached_model_is_cloned_without_entering_the_cache(
    hub_server: HubServer, hub_client: Client, work: Path, is_xet: bool
) -> None:
    hub_server.add(NAME, MODEL, is_xet=is_xet)
    data = data_of(hub_client.run("clone", NAME, str(work / "mine"), "--json"), "clone")
    assert (data["clone_status"], data["method"] in ("copy", "reflink", "apfs_clonefile")) == ("success", True)
    assert content(work / "mine") == MODEL
    assert all(path.stat().st_nlink == 1 and os.access(path, os.W_OK) for path in (work / "mine").iterdir())
    assert list(work.iterdir()) == [work / "mine"]
    assert not hub_client.cache_dir.exists()


def test_an_uncached_revision_is_cloned_without_changing_the_cache(
    hub_server: HubServer, hub_client: Client, work: Path
) -> None:
    hub_server.add(NAME, MODEL)
    hub_server.add(NAME, {"new.txt": b"new"}, branch="dev")
    assert hub_client.run("pull", NAME).code == 0
    before = read_tree(hub_client.cache_dir)
    data_of(hub_client.run("clone", NAME, str(work / "mine"), "--branch", "dev", "--json"), "clone")
    assert content(work / "mine") == MODEL | {"new.txt": b"new"}
    assert read_tree(hub_client.cache_dir) == before


def test_an_unhealthy_model_on_the_hub_is_refused(hub_server: HubServer, hub_client: Client, work: Path) -> None:
    hub_server.add(NAME, MODEL | {"config.json": b"{"})
    error = error_of(hub_client.run("clone", NAME, str(work / "a" / "b"), "--json"), "clone")
    assert (error["type"], error["data"]["clone_status"]) == ("ModelUnhealthyError", "health_check_failed")
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "kind", "status"),
    [
        (None, "access_denied", "access_denied"),
        (Fault("/api/models/", status=500, times=99), "download_failed", "pull_failed"),
        (Fault("", status=404, times=99, after=0), "download_failed", "pull_failed"),
        (Fault("", cut_after=1000, dies=True), "NetworkError", "pull_failed"),
    ],
)
def test_a_failed_pull_leaves_no_files(
    hub_server: HubServer, hub_client: Client, work: Path, fault: Fault | None, kind: str, status: str
) -> None:
    if fault is not None:
        hub_server.add(NAME, MODEL)
        hub_server.faults.add(fault)
    error = error_of(hub_client.run("clone", NAME, str(work / "mine"), "--json"), "clone")
    assert (error["type"], error["data"]["clone_status"]) == (kind, status)
    assert list(work.iterdir()) == []
    assert not hub_client.cache_dir.exists()


@pytest.mark.parametrize("moment", range(3))
def test_a_clone_killed_while_pulling_succeeds_when_repeated(
    hub_server: HubServer, hub_client: Client, work: Path, moment: int
) -> None:
    hub_server.add(NAME, MODEL)
    hub_server.faults.add(Fault("", rate=LARGE * 2, times=99))
    process = hub_client.start("clone", NAME, str(work / "mine"), "--json")
    wait_for(work, process)
    time.sleep(random.uniform(0, 0.1 + 0.2 * moment))
    process.kill()
    process.communicate()
    hub_server.faults.clear()
    if not (work / "mine").exists():
        data_of(hub_client.run("clone", NAME, str(work / "mine"), "--json"), "clone")
        assert list(work.iterdir()) == [work / "mine"]
    assert content(work / "mine") == MODEL
    assert not hub_client.cache_dir.exists()


@pytest.mark.parametrize("source", ["hub", "cache"])
def test_an_interrupted_clone_leaves_no_files(
    hub_server: HubServer, hub_client: Client, work: Path, source: str
) -> None:
    if source == "hub":
        hub_server.add(NAME, MODEL)
        hub_server.faults.add(Fault("", rate=LARGE // 20, times=99))
    else:
        hub_client.cache_dir.mkdir(parents=True)
        CacheDir(hub_client.cache_dir).add(NAME, MODEL | {f"{i}.bin": b"%d" % i * LARGE for i in range(4)})
    process = hub_client.start("clone", NAME, str(work / "deep" / "mine"), "--json")
    wait_for(work, process)
    time.sleep(COPY_SECONDS / 2)
    process.send_signal(signal.SIGINT)
    result = outcome_of(process)
    assert error_of(result, "clone", code=130)["type"] == "interrupted"
    assert list(work.iterdir()) == []


def test_one_of_several_clones_to_one_target_succeeds(cached: Path, work: Path) -> None:
    results = [outcome_of(process) for process in [start(cached, NAME, str(work / "mine")) for _ in range(3)]]
    assert sorted(result.code for result in results) == [0, 1, 1]
    assert {error_of(result, "clone")["type"] for result in results if result.code} == {"InvalidTargetError"}
    assert content(work / "mine") == MODEL
    assert list(work.iterdir()) == [work / "mine"]


def test_a_cloned_model_runs(
    cache_dir: CacheDir, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch, mlxk2: Program
) -> None:
    folder = write_chain(tmp_path / "chain", say("Par", "is", "!"))
    CacheDir(cache_dir.path, "shared").add(NAME, {path.name: path.read_bytes() for path in folder.iterdir()})
    monkeypatch.setenv("MLXK2_ENABLE_ALPHA_FEATURES", "1")
    monkeypatch.chdir(work)
    data_of(mlxk2("clone", NAME, "./mine", "--json"), "clone")
    shutil.rmtree(cache_dir.folder(NAME))
    command = [sys.executable, "-m", "mlxk2", "run", "./mine", "Capital?", "--temperature", "0"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert Result(done.returncode, done.stdout.strip(), "") == Result(0, "Paris!", ""), done
