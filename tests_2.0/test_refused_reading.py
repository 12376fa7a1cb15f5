"""What the operating system refuses to show: whose fault it is, and what helps, is said; the others are listed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.layouts import COMMIT, CacheDir, chat_model, without

from mlxk2.cache import space
from mlxk2.errors import IN_ICLOUD, OperationError, cause
from mlxk2.names import pull_command

NAME = "org/model"

# Root may read everything unless it gives that up.
DROP = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-dac_override,-dac_read_search"]

# Lets calls of the operating system fail for paths that contain a word, as on a Mac where that is asked for.
REFUSED = """
import errno, os, sys
calls, number, word, platform, *words = sys.argv[1:]
sys.platform = platform or sys.platform
for call in calls.split():
    def refuse(path, *args, real=getattr(os, call), **named):
        if isinstance(path, str) and word in path:
            raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)), path)
        return real(path, *args, **named)
    setattr(os, call, refuse)
from mlxk2.cli.main import main
sys.exit(main(words))
"""


def as_another(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs the program as somebody to whom files are closed."""
    drop = DROP if os.geteuid() == 0 else []
    if drop and shutil.which("setpriv") is None:
        pytest.skip("root may read everything, and setpriv is not installed")
    command = [*drop, sys.executable, "-m", "mlxk2", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)


def refused(calls: str, number: str, word: str, *words: str, platform: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the program where these calls fail with this error for paths that contain a word."""
    command = [sys.executable, "-c", REFUSED, calls, number, word, platform, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    assert "Traceback" not in done.stderr and "Unexpected" not in done.stderr + done.stdout, done
    return done


PLACES = {
    "the folder": ".",
    "the snapshots": "snapshots",
    "the snapshot": f"snapshots/{COMMIT}",
    "the refs": "refs",
    "the ref": "refs/main",
    "the blobs": "blobs",
}


@pytest.mark.parametrize("place", PLACES)
def test_what_belongs_to_another_user_is_said_to_be_closed(cache_dir: CacheDir, place: str) -> None:
    cache_dir.add(NAME, chat_model())
    cache_dir.add("org/other", chat_model(model_type="qwen3"))
    closed = cache_dir.folder(NAME) / PLACES[place]
    closed.chmod(0)
    try:
        listed = json.loads(as_another("list", "--json").stdout)["data"]["models"]
        verdict = json.loads(as_another("health", "--json").stdout)["data"]
        shown = as_another("show", NAME)
        run = as_another("run", NAME, "hi")
        at = as_another("show", f"{NAME}@main")
    finally:
        closed.chmod(0o755)
    assert [model["health"] for model in listed] == ["unhealthy", "healthy"]
    (entry,) = verdict["unhealthy"]
    for said in (listed[0]["reason"], entry["reason"], shown.stdout, run.stderr, at.stdout + at.stderr):
        assert "Permission denied; check its owner and its mode" in said
        assert "never downloaded" not in said
    assert run.returncode == 1 and "can't be read: " in run.stderr
    # A ref is one of the files that a pull writes anew; folders are their owner's.
    assert "mlxk2 pull" not in run.stderr or place == "the ref"


@pytest.mark.parametrize("place", ["hub", "."])
def test_a_cache_that_belongs_to_another_user_is_said_to_be_closed(cache_dir: CacheDir, place: str) -> None:
    cache_dir.add(NAME, chat_model())
    closed = cache_dir.path.parent / place
    closed.chmod(0)
    try:
        results = [as_another(*words) for words in (("list",), ("health",), ("show", NAME))]
    finally:
        closed.chmod(0o755)
    for done in results:
        assert done.returncode == 1 and "Permission denied; check its owner and its mode" in done.stderr


def test_a_hub_whose_folders_can_be_listed_but_not_entered(cache_dir: CacheDir) -> None:
    cache_dir.add(NAME, chat_model())
    cache_dir.path.chmod(0o444)
    try:
        done = as_another("list", "--all", "--health", "--verbose")
    finally:
        cache_dir.path.chmod(0o755)
    assert NAME in done.stdout and "Permission denied" in done.stdout


CALLS = {"folders": "scandir listdir", "looks": "lstat stat", "files": "open"}


@pytest.mark.parametrize("number", ["EIO", "ESTALE", "ENOTCONN", "EACCES", "EPERM", "ETIMEDOUT"])
@pytest.mark.parametrize("calls", CALLS)
def test_a_disk_that_fails_is_a_reason_of_its_model_alone(cache_dir: CacheDir, calls: str, number: str) -> None:
    cache_dir.add("org/bad", chat_model())
    cache_dir.add(NAME, chat_model())
    for words in (["list"], ["health"], ["health", "--deep"]):
        done = refused(CALLS[calls], number, "models--org--bad", *words, "--json")
        data = json.loads(done.stdout)["data"]
        entries = data["models"] if words == ["list"] else data["healthy"] + data["unhealthy"]
        found = {entry["name"]: entry for entry in entries}
        assert set(found) == {NAME, "org/bad"}
        assert found[NAME].get("health", found[NAME].get("status")) == "healthy"
        assert os.strerror(getattr(errno, number)) in found["org/bad"]["reason"]
    done = refused(CALLS[calls], number, "models--org--bad", "show", "org/bad", "--json")
    assert os.strerror(getattr(errno, number)) in done.stdout


def test_on_a_mac_what_protects_a_folder_and_what_is_in_icloud_is_said(cache_dir: CacheDir) -> None:
    cache_dir.add(NAME, chat_model())
    protected = refused("scandir", "EPERM", "models--org", "health", platform="darwin")
    assert "Privacy & Security › Files and Folders" in protected.stdout
    whole = refused("scandir", "EPERM", str(cache_dir.path), "list", platform="darwin")
    assert "Privacy & Security › Files and Folders" in whole.stderr
    evicted = refused("open", "EDEADLK", "blobs", "health", platform="darwin")
    assert IN_ICLOUD in evicted.stdout


def test_the_words_of_an_error_are_those_of_its_system() -> None:
    denied, deadlock = OSError(errno.EPERM, "Operation not permitted"), OSError(errno.EDEADLK, "Deadlock avoided")
    assert cause(denied, "linux") == "Operation not permitted"
    assert "Files and Folders" in cause(denied, "darwin")
    assert (cause(deadlock, "linux"), cause(deadlock, "darwin")) == ("Deadlock avoided", f"it {IN_ICLOUD}")
    assert cause(OSError("nothing but text"), "linux") == "nothing but text"


def test_an_unplugged_disk_is_said_to_be_missing(mlxk2: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "Volumes" / "disk"))
    for words in (("list",), ("health",), ("list", "--all")):
        plain, flagged = mlxk2(*words), mlxk2(*words, "--json")
        is_said = ": the cache folder is not there" if words[0] == "list" else ""
        assert plain.out == f"No models found{is_said}.\n"
        for result in (plain, flagged):
            assert result.code == 0 and "connect that disk" in result.err and "HF_HOME" in result.err
    assert mlxk2("list", "--json").json["data"] == {"models": [], "count": 0}
    assert "not there" in mlxk2("run", "nonesuch", "hi").err


def test_room_that_macos_frees_is_room(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert space.available(tmp_path, lambda _: free + 10**15) >= 10**15
    assert space.available(tmp_path, lambda _: None) > 0
    assert space.available(tmp_path, lambda _: 0) > 0
    asked: list[str] = []

    def ask(folder: str) -> int:
        asked.append(folder)
        return 10**15

    space.check("it", 10**14, tmp_path, alternative="x", ask=ask)
    assert asked == [str(tmp_path)]
    with pytest.raises(OperationError, match="100.0TB needed"):
        space.check("it", 10**14, tmp_path, alternative="x", ask=lambda _: None)


NO_REPO = [
    "org/x/-y",
    "gpt2",
    "org/a b",
    "org/-x",
    "org/x.",
    "org/x.git",
    "org/é",
    "org/a\u202eb",
    "o--g/x",
    "./x",
    "demo",
]


@pytest.mark.parametrize("name", NO_REPO)
def test_what_no_hub_can_have_is_not_to_be_pulled(cache_dir: CacheDir, mlxk2: Any, name: str) -> None:
    assert pull_command(name) is None and pull_command(name, "main") is None
    if name.startswith("."):
        return
    if name != "demo":
        cache_dir.add(name, without(chat_model(), "model.safetensors"))
        assert "mlxk2 pull" not in mlxk2("run", name, "hi").err
    assert "mlxk2 pull" not in mlxk2("show", f"{name}@abcdef").err


def test_a_revision_that_is_none_is_not_to_be_pulled(cache_dir: CacheDir, mlxk2: Any) -> None:
    cache_dir.add(NAME, chat_model())
    assert "mlxk2 pull org/model@v1" in mlxk2("show", f"{NAME}@v1").err
    assert "mlxk2 pull" not in mlxk2("show", f"{NAME}@a b; rm").err
    assert "mlxk2 pull" not in mlxk2("show", "org/a b").err


def test_what_is_so_on_the_hub_is_not_to_be_pulled_again(cache_dir: CacheDir, mlxk2: Any) -> None:
    snapshot = cache_dir.add(NAME, chat_model() | {"config.json": b'{"model_type": "lla'})
    assert "on the hub itself" in mlxk2("run", NAME, "hi").err
    blob = (snapshot / "config.json").resolve()
    blob.write_bytes(b"{")
    assert "Repair it with: mlxk2 pull org/model" in mlxk2("run", NAME, "hi").err


def test_a_file_that_is_in_icloud_alone_is_no_damage(cache_dir: CacheDir) -> None:
    code = (
        "import os, sys, types\nreal = os.lstat\n"
        "def lstat(path, **named):\n status = real(path, **named)\n"
        " return types.SimpleNamespace(st_flags=0x40000000, **{n: getattr(status, n) for n in dir(status)"
        " if n.startswith('st_')}) if 'blobs' in str(path) else status\n"
        "os.lstat = lstat\nfrom mlxk2.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    cache_dir.add(NAME, chat_model())
    done = subprocess.run([sys.executable, "-c", code, "run", NAME, "hi"], capture_output=True, text=True, timeout=60)
    assert IN_ICLOUD in done.stderr and "mlxk2 pull" not in done.stderr
