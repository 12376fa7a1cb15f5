"""The soak, for seconds: it finds nothing, leaves nothing, and a Ctrl-C ends it."""

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
    """Start a soak that puts all it makes into a folder."""
    return subprocess.Popen(
        [*SOAK, *words],
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(soak: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a soak."""
    try:
        out, err = soak.communicate(timeout=LIMIT_SECONDS)
    finally:
        soak.kill()
    return soak.returncode, out, err


def test_a_short_soak_passes_and_leaves_nothing(tmp_path: Path) -> None:
    code, out, err = ended(start(tmp_path, "--seconds", "20", "--seed", "1"))
    assert (code, out.splitlines()[-1]) == (0, "PASSED: 0 unexpected"), f"{out}\n{err}"
    counts = {kind: int(count) for kind, count in re.findall(r"^  (\w+) (\d+): ", out, re.MULTILINE)}
    assert all(counts[kind] > 0 for kind in ("asked", "right", "refused", "restart", "command", "faults")), out
    assert "left behind: nothing" in out
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    soak = start(tmp_path, "--seconds", "300")
    assert soak.stderr is not None
    # The first fault is told: all is under way.
    assert soak.stderr.readline().startswith("[")
    soak.send_signal(signal.SIGINT)
    code, out, err = ended(soak)
    assert (code, out) == (130, ""), err
    assert err.endswith("Interrupted.\n") and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
