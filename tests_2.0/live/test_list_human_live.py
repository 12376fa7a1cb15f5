"""List and health on the user's own cache; nothing is written there."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import takewhile

import pytest

pytestmark = [pytest.mark.wet, pytest.mark.live_list]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mlxk2", *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def everything() -> str:
    """Return the output of `list --all` for the user's cache."""
    done = run("list", "--all", "--verbose")
    assert (done.returncode, done.stderr) == (0, "")
    if not any(line.split()[-1] == "chat" for line in rows(done.stdout)):
        pytest.skip(f"no chat model in the cache of {os.environ['HF_HOME']}")
    return done.stdout


def rows(output: str) -> list[str]:
    """Return the lines of the table, without its head and without the total that follows after an empty line."""
    return list(takewhile(bool, output.splitlines()[1:]))


def names(output: str) -> set[str]:
    return {line.split()[0] for line in rows(output)}


def test_plain_list_shows_a_part_of_list_all(everything: str) -> None:
    done = run("list")
    assert done.returncode == 0
    shown = {name if "/" in name else f"mlx-community/{name}" for name in names(done.stdout)}
    assert shown <= names(everything)


def test_verbose_list_shows_a_part_of_list_all(everything: str) -> None:
    assert names(run("list", "--verbose").stdout) <= names(everything)


def test_health_counts_every_model(everything: str) -> None:
    done = run("health")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].endswith(f" of {len(names(everything))} healthy")
