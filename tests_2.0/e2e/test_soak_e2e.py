"""A short soak: it finds no fault, leaves no files, and Ctrl-C ends it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

SOAK = (sys.executable, str(Path(__file__).parents[2] / "tools" / "soak"))
LIMIT_SECONDS = 400


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start a soak that keeps all its files in one folder."""
    return subprocess.Popen(
        [*SOAK, *words],
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_end(soak: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a soak; return its exit code, stdout and stderr."""
    try:
        out, err = soak.communicate(timeout=LIMIT_SECONDS)
    finally:
        soak.kill()
    return soak.returncode, out, err


def test_a_short_soak_passes_and_leaves_no_files(tmp_path: Path) -> None:
    code, out, err = wait_for_end(start(tmp_path, "--seconds", "20", "--seed", "1"))
    assert (code, out.splitlines()[-1]) == (0, "PASSED: 0 unexpected"), f"{out}\n{err}"
    counts = {kind: int(count) for kind, count in re.findall(r"^  (\w+) (\d+): ", out, re.MULTILINE)}
    assert all(counts[kind] > 0 for kind in ("asked", "right", "refused", "restart", "command", "faults")), out
    assert "left behind: nothing" in out
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_a_soak_cleanly(tmp_path: Path) -> None:
    soak = start(tmp_path, "--seconds", "300")
    assert soak.stderr is not None
    # The soak has printed its first fault, so all its parts are running.
    assert soak.stderr.readline().startswith("[")
    soak.send_signal(signal.SIGINT)
    code, out, err = wait_for_end(soak)
    assert (code, out) == (130, ""), err
    assert err.endswith("Interrupted.\n") and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
