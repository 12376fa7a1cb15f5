"""The checks of `make` before pip runs, with stand-ins for the Python of other machines."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MAKEFILE = Path(__file__).parent.parent / "Makefile"
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

STAND_IN = """#!/bin/sh
if [ "$1" != -c ]; then
    echo "$SYSTEM_VERSION_COMPAT: $*" >> "{log}"
    exit 1
fi
exec "{python}" -c '
import platform, sys
sys.version_info, sys.platform = {version}, "{system}"
platform.machine, platform.mac_ver = lambda: "{machine}", lambda: ("{release}", ("", "", ""), "{machine}")
exec(sys.argv[1])' "$2"
"""


def check(folder: Path, *, version: tuple[int, ...], system: str, machine: str, release: str = "") -> tuple[str, str]:
    """Run `make` with a Python of another machine; return its error and the commands that it runs next."""
    python, log = folder / "python", folder / "log"
    python.write_text(
        STAND_IN.format(
            log=log, python=sys.executable, version=version, system=system, machine=machine, release=release
        )
    )
    python.chmod(0o755)
    log.touch()
    command = ["make", "demo", f"PYTHON={python}", f"VENV={folder}/venv"]
    done = subprocess.run(command, cwd=MAKEFILE.parent, capture_output=True, text=True, check=False)
    return done.stderr, log.read_text()


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (
            {"version": (3, 9, 6), "system": "darwin", "machine": "arm64", "release": "15.1"},
            "mlxk2 needs Python 3.11 or newer; name one: make PYTHON=python3.12\n",
        ),
        (
            {"version": (3, 12, 1), "system": "darwin", "machine": "x86_64", "release": "15.1"},
            "MLX needs a Mac with Apple silicon, and this Python is for Intel. If yours has Apple silicon, name a ",
        ),
        (
            {"version": (3, 12, 1), "system": "darwin", "machine": "arm64", "release": "13.6.1"},
            "MLX needs macOS 14 or newer.\n",
        ),
    ],
    ids=["old Python", "Intel or Rosetta", "old macOS"],
)
def test_an_unsuitable_machine_is_reported_before_anything_is_installed(
    machine: dict[str, Any], said: str, tmp_path: Path
) -> None:
    error, went_on = check(tmp_path, **machine)
    assert error.startswith(said) and went_on == ""


@pytest.mark.parametrize(
    "machine",
    [
        {"version": (3, 11, 0), "system": "darwin", "machine": "arm64", "release": "14.0"},
        {"version": (3, 14, 0), "system": "darwin", "machine": "arm64", "release": "26.1"},
        {"version": (3, 11, 0), "system": "linux", "machine": "x86_64"},
    ],
)
def test_suitable_machines_continue_with_the_real_macos_version(machine: dict[str, Any], tmp_path: Path) -> None:
    _, went_on = check(tmp_path, **machine)
    assert went_on == f"0: -m venv {tmp_path}/venv\n"
