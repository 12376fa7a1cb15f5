"""`rm`, `clone` and `pull` on disks that are not Linux's own: without locks of folders or of files, with companions."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.conformance import data_of, error_of
from support.filesystems import read_tree
from support.hub import HubServer
from support.hub.fixtures import Client
from support.layouts import COMMIT, OTHER_COMMIT, SENTINEL, CacheDir, chat_model

pytestmark = pytest.mark.e2e

NAME = "org/model"
STUB = str(Path(__file__).parents[1] / "support" / "fake_disk")
# SMB refuses to lock folders; NFS grants every lock of a folder, or has no locks at all; some disks grant every lock.
LOCKLESS = ["EISDIR folders", "granted folders", "ENOTSUP all", "granted all"]
DAYS = 2 * 24 * 60 * 60


@pytest.fixture
def cache(hub_client: Client) -> CacheDir:
    """Return a cache with a model of two revisions, for programs that find the stub on their path."""
    hub_client.environment["PYTHONPATH"] = STUB
    hub_client.cache_dir.mkdir(parents=True)
    (hub_client.cache_dir / SENTINEL).touch()
    cache_dir = CacheDir(hub_client.cache_dir)
    cache_dir.add(NAME, chat_model())
    cache_dir.add(NAME, chat_model() | {"notes.txt": b"other"}, OTHER_COMMIT, ref="dev")
    return cache_dir


def names_in(folder: Path) -> set[str]:
    """Return the names in a folder, without the sentinel file of the tests."""
    return {path.name for path in folder.iterdir()} - {SENTINEL}


@pytest.mark.parametrize("flock", LOCKLESS)
def test_commands_work_and_clean_up_on_disks_without_locks(
    hub_server: HubServer, hub_client: Client, cache: CacheDir, tmp_path: Path, flock: str
) -> None:
    def run(*words: str) -> object:
        return data_of(hub_client.run(*words, "--json", FLOCK=flock), words[0])

    hub_server.add("org/new", chat_model())
    run("rm", f"{NAME}@dev")
    assert names_in(cache.path) - {".locks"} == {"models--org--model"}
    run("clone", NAME, str(tmp_path / "work" / "cached"))
    run("clone", "org/new", str(tmp_path / "work" / "new"))
    assert names_in(tmp_path / "work") == {"cached", "new"}
    run("pull", "org/new")
    run("rm", "org/new")
    run("rm", NAME)
    assert names_in(cache.path) <= {".locks"}
    assert not [path for path in cache.path.rglob("*") if not path.is_dir() and path.name != SENTINEL]


WORKING = """
import os, sys
from mlxk2.cache import scratch
from mlxk2.cache.directory import Directory
with Directory.at(sys.argv[1]) as below, scratch.create(below, sys.argv[2]) as made:
    made.folder.make("models--org--living")
    print(made.name, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def working(hub_client: Client) -> Iterator[Callable[[Path, str, str], Path]]:
    """Yield a function that starts a process in a scratch folder, until the test ends."""
    started: list[subprocess.Popen[bytes]] = []

    def start(folder: Path, prefix: str, flock: str) -> Path:
        command = [sys.executable, "-c", WORKING, str(folder), prefix]
        environment = hub_client.environment | {"FLOCK": flock}
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        return folder / process.stdout.readline().decode().strip()

    yield start
    for process in started:
        process.communicate()


@pytest.mark.parametrize("flock", LOCKLESS)
def test_the_folder_of_a_living_process_is_kept(
    hub_client: Client, cache: CacheDir, working: Callable[[Path, str, str], Path], flock: str
) -> None:
    living = working(cache.path, ".trash-model-", flock)
    data_of(hub_client.run("rm", NAME, "--json", FLOCK=flock), "rm")
    assert (living / "models--org--living").is_dir()


@pytest.mark.parametrize(("flock", "goes"), [(flock, not flock.endswith("all")) for flock in LOCKLESS])
def test_folders_of_dead_processes_are_removed_only_when_certain(
    hub_client: Client, cache: CacheDir, flock: str, goes: bool
) -> None:
    for name in (".trash-model-new", ".trash-model-old"):
        (cache.path / name / "models--org--dead").mkdir(parents=True)
        (cache.path / name / ".lock").touch()
    before = time.time() - DAYS
    for path in (cache.path / ".trash-model-old", cache.path / ".trash-model-old" / ".lock"):
        os.utime(path, (before, before))
    data_of(hub_client.run("rm", NAME, "--json", FLOCK=flock), "rm")
    assert names_in(cache.path) - {".locks"} == (set() if goes else {".trash-model-new"})


@pytest.mark.parametrize("flock", ["EWOULDBLOCK all", "EACCES all"])
def test_a_disk_that_refuses_every_lock_is_an_error(hub_client: Client, cache: CacheDir, flock: str) -> None:
    error = error_of(hub_client.run("rm", NAME, "--json", FLOCK=flock), "rm")
    assert error["type"] in ("OperationError", "PermissionError")
    assert names_in(cache.path) - {".locks"} == {"models--org--model"}


# -------------------------------------------------------------------------------------------------------- companions


def litter(folder: Path) -> None:
    """Add a companion beside every file below a folder, and a file of the Finder to each folder."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            (path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        if path != folder and path.name not in (".DS_Store", SENTINEL):
            path.with_name("._" + path.name).write_bytes(b"\0\5\26\7")


@pytest.fixture
def littered(cache: CacheDir) -> CacheDir:
    """Return a cache on such a disk, with leftovers of killed downloads and removals."""
    (cache.path / ".locks" / "models--org--model").mkdir(parents=True)
    (cache.path / ".locks" / "models--org--model" / "stale.lock").touch()
    CacheDir(cache.path / ".trash-model-0").add("org/gone", chat_model())
    for name in ("model", "new"):
        unfinished = cache.path / f".models--org--{name}.incomplete" / "blobs"
        unfinished.mkdir(parents=True)
        (unfinished / "abc").touch()
        (unfinished / "abc.partial").touch()
    litter(cache.path)
    return cache


def of_user(folder: Path) -> dict[str, object]:
    """Return the content of a folder without the files that macOS adds."""
    return {name: value for name, value in read_tree(folder).items() if not Path(name).name.startswith(("._", ".DS_S"))}


@pytest.mark.parametrize("companions", [{}, {"COMPANIONS": "1"}])
def test_rm_removes_a_model_with_companion_files(
    hub_client: Client, littered: CacheDir, companions: dict[str, str]
) -> None:
    data = data_of(hub_client.run("rm", NAME, "--json", **companions), "rm")
    assert (data["action"], data["lock_files_cleaned"]) == ("deleted", 1)
    rest = {name for name in names_in(littered.path) if "--model" in name or "trash" in name}
    assert rest <= {"._.trash-model-0"}
    assert not (littered.path / ".locks" / "models--org--model").exists()


@pytest.mark.parametrize("companions", [{}, {"COMPANIONS": "1"}])
def test_rm_removes_a_revision_with_companion_files(
    hub_client: Client, littered: CacheDir, companions: dict[str, str]
) -> None:
    # A companion is never read as a ref.
    (littered.folder(NAME) / "refs" / "._dev").write_text(COMMIT)
    data = data_of(hub_client.run("rm", f"{NAME}@{COMMIT}", "--json", **companions), "rm")
    assert data["action"] == "deleted"
    folder = littered.folder(NAME)
    assert {name for name in names_in(folder / "snapshots") if not name.startswith(".")} == {OTHER_COMMIT}
    assert {path.name for path in (folder / "refs").iterdir()} == {"dev", "._dev", ".DS_Store"}
    assert not [name for name in names_in(littered.path) if name.startswith(".trash")]
    health = hub_client.run("health", NAME, "--json").json["data"]["summary"]
    assert health["healthy_count"] == 1


@pytest.mark.parametrize("companions", [{}, {"COMPANIONS": "1"}])
def test_clone_and_pull_ignore_companion_files(
    hub_server: HubServer,
    hub_client: Client,
    littered: CacheDir,
    tmp_path: Path,
    companions: dict[str, str],
) -> None:
    assert littered.path == hub_client.cache_dir
    for name in (NAME, "org/new"):
        hub_server.add(name, chat_model() | {"new.txt": b"new"})
    for name in (NAME, "org/new"):
        data_of(hub_client.run("pull", name, "--json", **companions), "pull")
    data_of(hub_client.run("rm", "org/new", "--json", **companions), "rm")
    data_of(hub_client.run("clone", "org/new", str(tmp_path / "mine"), "--json", **companions), "clone")
    assert of_user(tmp_path / "mine") == chat_model() | {"new.txt": b"new"}
    summary = hub_client.run("health", "--deep", "--json").json["data"]["summary"]
    assert (summary["total"], summary["healthy_count"]) == (1, 1)
