"""Fixtures of all tests: an isolated cache, and the opt-in of tests that need the user's cache or the network."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
from hypothesis import settings
from support import clean_environment  # noqa: F401 - before anything imports huggingface_hub
from support.hub.fixtures import hub_client, hub_server  # noqa: F401 - fixtures
from support.layouts import SENTINEL, CacheDir
from support.pushing import pusher  # noqa: F401 - a fixture

from mlxk2.cli.main import main

# The user's own cache; read before any test isolates itself.
_USER_HF_HOME = os.environ.get("MLXK2_USER_HF_HOME") or os.environ.get("HF_HOME") or ""
_NEEDED = {
    "live_list": ("HF_HOME",),
    "live_push": (
        "MLXK2_ENABLE_ALPHA_FEATURES",
        "MLXK2_LIVE_PUSH",
        "HF_TOKEN",
        "MLXK2_LIVE_REPO",
        "MLXK2_LIVE_WORKSPACE",
    ),
    "live_clone": (
        "MLXK2_ENABLE_ALPHA_FEATURES",
        "MLXK2_LIVE_CLONE",
        "HF_TOKEN",
        "MLXK2_LIVE_CLONE_MODEL",
        "MLXK2_LIVE_CLONE_WORKSPACE",
    ),
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the workers of `-n auto`: one more than processors, since tests wait a third of the time."""
    return (os.cpu_count() or 1) + 1


def pytest_configure() -> None:
    """Make Ctrl-C work in programs under test, and give property tests the time they need."""
    # A shell starts background jobs with SIGINT ignored, and programs under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The machine may be busy with other tests, so there is no deadline.
    settings.register_profile("patient", deadline=None)
    settings.load_profile("patient")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip an opt-in test whose variables are missing, and name them."""
    for marker, variables in _NEEDED.items():
        missing = [name for name in variables if not os.environ.get(name)]
        if missing and item.get_closest_marker(marker):
            pytest.skip(f"{marker} needs {', '.join(missing)}")
    if item.get_closest_marker("issue27") and not _USER_HF_HOME:
        pytest.skip("issue27 needs MLXK2_USER_HF_HOME or HF_HOME, a cache with real models")


class Result(NamedTuple):
    """The exit code and the output of one run of the program."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Return the one JSON document on stdout; fail if there is anything else."""
        return json.loads(self.out, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


class Program(Protocol):
    """The program's `main` in this process: `mlxk2("list", "--json")`."""

    def __call__(self, *words: str) -> Result: ...


@pytest.fixture
def isolated_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a new, empty cache folder that all code under test uses as the user's cache."""
    home = tmp_path / "huggingface"
    cache_dir = home / "hub"
    cache_dir.mkdir(parents=True)
    (cache_dir / SENTINEL).write_text("This cache belongs to a test.\n")
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache_dir))
    monkeypatch.setenv("HUGGINGFACE_HUB_CACHE", str(cache_dir))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setenv("MLXK2_STRICT_TEST_DELETE", "1")
    monkeypatch.setenv("MLXK2_USER_HF_HOME", _USER_HF_HOME)
    yield cache_dir
    assert_is_test_cache(cache_dir)


def assert_is_test_cache(cache_dir: Path) -> None:
    """Fail unless the folder is the cache of a test, which may be changed without harm."""
    assert (cache_dir / SENTINEL).is_file(), f"{cache_dir} is no test cache"


@pytest.fixture
def cache_dir(isolated_cache: Path) -> CacheDir:
    """Return the isolated cache, to be filled with models in the usual layout."""
    return CacheDir(isolated_cache)


@pytest.fixture
def mlxk2(
    isolated_cache: Path,  # noqa: ARG001 - isolates
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Program]:
    """Yield a function that runs `main` in this process, with an empty stdin: `mlxk2("list", "--json")`."""

    def run(*words: str) -> Result:
        capsys.readouterr()
        code = main(words)
        return Result(code, *capsys.readouterr())

    with open(os.devnull) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        yield run
