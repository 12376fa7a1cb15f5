"""Files that the operating system refuses to read: the error says why and what helps; other models are listed."""

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

# Root may read everything unless it drops these capabilities.
DROP = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-dac_override,-dac_read_search"]

# Lets system calls fail for paths that contain a word, optionally as on a Mac.
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


def run_without_access(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a user without access to the files."""
    drop = DROP if os.geteuid() == 0 else []
    if drop and shutil.which("setpriv") is None:
        pytest.skip("root may read everything, and setpriv is not installed")
    command = [*drop, sys.executable, "-m", "mlxk2", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)


def run_refused(
    calls: str, number: str, word: str, *words: str, platform: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the program where these calls fail with this error for paths that contain a word."""
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
def test_an_unreadable_model_is_reported_and_the_others_are_listed(cache_dir: CacheDir, place: str) -> None:
    cache_dir.add(NAME, chat_model())
    cache_dir.add("org/other", chat_model(model_type="qwen3"))
    closed = cache_dir.folder(NAME) / PLACES[place]
    closed.chmod(0)
    try:
        listed = json.loads(run_without_access("list", "--json").stdout)["data"]["models"]
        verdict = json.loads(run_without_access("health", "--json").stdout)["data"]
        shown = run_without_access("show", NAME)
        run = run_without_access("run", NAME, "hi")
        at = run_without_access("show", f"{NAME}@main")
    finally:
        closed.chmod(0o755)
    assert [model["health"] for model in listed] == ["unhealthy", "healthy"]
    (entry,) = verdict["unhealthy"]
    for said in (listed[0]["reason"], entry["reason"], shown.stdout, run.stderr, at.stdout + at.stderr):
        assert "Permission denied; check its owner and its mode" in said
        assert "never downloaded" not in said
    assert run.returncode == 1 and "can't be read: " in run.stderr
    # A pull can replace a ref, which is a file; only the owner can repair a folder.
    assert "mlxk2 pull" not in run.stderr or place == "the ref"


@pytest.mark.parametrize("place", ["hub", "."])
def test_an_unreadable_cache_is_reported(cache_dir: CacheDir, place: str) -> None:
    cache_dir.add(NAME, chat_model())
    closed = cache_dir.path.parent / place
    closed.chmod(0)
    try:
        results = [run_without_access(*words) for words in (("list",), ("health",), ("show", NAME))]
    finally:
        closed.chmod(0o755)
    for done in results:
        assert done.returncode == 1 and "Permission denied; check its owner and its mode" in done.stderr


def test_a_cache_that_can_be_listed_but_not_entered_is_reported(cache_dir: CacheDir) -> None:
    cache_dir.add(NAME, chat_model())
    cache_dir.path.chmod(0o444)
    try:
        done = run_without_access("list", "--all", "--health", "--verbose")
    finally:
        cache_dir.path.chmod(0o755)
    assert NAME in done.stdout and "Permission denied" in done.stdout


CALLS = {"folders": "scandir listdir", "looks": "lstat stat", "files": "open"}


@pytest.mark.parametrize("number", ["EIO", "ESTALE", "ENOTCONN", "EACCES", "EPERM", "ETIMEDOUT"])
@pytest.mark.parametrize("calls", CALLS)
def test_a_disk_error_affects_only_its_own_model(cache_dir: CacheDir, calls: str, number: str) -> None:
    cache_dir.add("org/bad", chat_model())
    cache_dir.add(NAME, chat_model())
    for words in (["list"], ["health"], ["health", "--deep"]):
        done = run_refused(CALLS[calls], number, "models--org--bad", *words, "--json")
        data = json.loads(done.stdout)["data"]
        entries = data["models"] if words == ["list"] else data["healthy"] + data["unhealthy"]
        found = {entry["name"]: entry for entry in entries}
        assert set(found) == {NAME, "org/bad"}
        assert found[NAME].get("health", found[NAME].get("status")) == "healthy"
        assert os.strerror(getattr(errno, number)) in found["org/bad"]["reason"]
    done = run_refused(CALLS[calls], number, "models--org--bad", "show", "org/bad", "--json")
    assert os.strerror(getattr(errno, number)) in done.stdout


def test_macos_errors_name_privacy_settings_and_icloud(cache_dir: CacheDir) -> None:
    cache_dir.add(NAME, chat_model())
    protected = run_refused("scandir", "EPERM", "models--org", "health", platform="darwin")
    assert "Privacy & Security › Files and Folders" in protected.stdout
    whole = run_refused("scandir", "EPERM", str(cache_dir.path), "list", platform="darwin")
    assert "Privacy & Security › Files and Folders" in whole.stderr
    evicted = run_refused("open", "EDEADLK", "blobs", "health", platform="darwin")
    assert IN_ICLOUD in evicted.stdout


def test_the_cause_of_an_error_depends_on_the_system() -> None:
    denied, deadlock = OSError(errno.EPERM, "Operation not permitted"), OSError(errno.EDEADLK, "Deadlock avoided")
    assert cause(denied, "linux") == "Operation not permitted"
    assert "Files and Folders" in cause(denied, "darwin")
    assert (cause(deadlock, "linux"), cause(deadlock, "darwin")) == ("Deadlock avoided", f"it {IN_ICLOUD}")
    assert cause(OSError("nothing but text"), "linux") == "nothing but text"


def test_an_unplugged_disk_is_reported_as_missing(mlxk2: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "Volumes" / "disk"))
    for words in (("list",), ("health",), ("list", "--all")):
        plain, flagged = mlxk2(*words), mlxk2(*words, "--json")
        assert plain.out.startswith("No models found.")
        for result in (plain, flagged):
            assert result.code == 0 and "connect that disk" in result.err and "HF_HOME" in result.err
    assert mlxk2("list", "--json").json["data"] == {"models": [], "count": 0}
    assert "does not exist" in mlxk2("run", "nonesuch", "hi").err


def test_purgeable_space_of_macos_counts_as_free(tmp_path: Path) -> None:
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
def test_no_pull_is_suggested_for_a_name_that_no_hub_can_have(cache_dir: CacheDir, mlxk2: Any, name: str) -> None:
    assert pull_command(name) is None and pull_command(name, "main") is None
    if name.startswith("."):
        return
    if name != "demo":
        cache_dir.add(name, without(chat_model(), "model.safetensors"))
        assert "mlxk2 pull" not in mlxk2("run", name, "hi").err
    assert "mlxk2 pull" not in mlxk2("show", f"{name}@abcdef").err


def test_no_pull_is_suggested_for_an_invalid_revision(cache_dir: CacheDir, mlxk2: Any) -> None:
    cache_dir.add(NAME, chat_model())
    assert "mlxk2 pull org/model@v1" in mlxk2("show", f"{NAME}@v1").err
    assert "mlxk2 pull" not in mlxk2("show", f"{NAME}@a b; rm").err
    assert "mlxk2 pull" not in mlxk2("show", "org/a b").err


def test_no_pull_is_suggested_for_a_file_damaged_on_the_hub(cache_dir: CacheDir, mlxk2: Any) -> None:
    snapshot = cache_dir.add(NAME, chat_model() | {"config.json": b'{"model_type": "lla'})
    assert "the same on the hub" in mlxk2("run", NAME, "hi").err
    blob = (snapshot / "config.json").resolve()
    blob.write_bytes(b"{")
    assert "Repair it with: mlxk2 pull org/model" in mlxk2("run", NAME, "hi").err


def test_a_file_stored_only_in_icloud_is_not_damaged(cache_dir: CacheDir) -> None:
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
