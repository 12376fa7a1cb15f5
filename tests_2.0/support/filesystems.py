"""Helpers for tests of the disk: contents and size of folders, and mounted file systems."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest


def read_tree(folder: Path) -> dict[str, str | bytes | None]:
    """Return everything below a folder: a file's bytes, a link's target, None for a folder."""
    found: dict[str, str | bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def copy_tree(folder: Path, place: Path) -> Path:
    """Replace `place` by a copy of a folder, links as they are, and return it."""
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(folder, place, symlinks=True))


def disk_usage(folder: Path) -> int:
    """Return the disk space of a folder in bytes, as du counts it."""
    output = subprocess.run(["du", "-s", "-k", folder], check=True, capture_output=True, text=True).stdout
    return int(output.split()[0]) * 1024


@contextmanager
def mount(place: Path, *options: str) -> Iterator[Path]:
    """Mount a file system at a new folder; skip the test where mounting is not permitted."""
    place.mkdir()
    if shutil.which("mount") is None or subprocess.run(["mount", *options, place], capture_output=True).returncode:
        pytest.skip(f"mount {' '.join(options)} is not permitted or not supported here")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def mount_tmpfs(place: Path, size: str) -> AbstractContextManager[Path]:
    """Mount a small disk in memory."""
    return mount(place, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")


@contextmanager
def mount_ignoring_case(place: Path) -> Iterator[Path]:
    """Mount a disk that ignores case; skip the test where FUSE is missing or not permitted."""
    folder = place.with_name(f"{place.name}-behind")
    folder.mkdir()
    place.mkdir()
    server = subprocess.Popen(
        [sys.executable, Path(__file__).parent / "case_insensitive.py", folder, place],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not os.path.ismount(place) and server.poll() is None:
        time.sleep(0.01)
    if server.poll() is not None:
        *_, reason = ("", *server.communicate()[1].strip().splitlines())
        pytest.skip(f"a disk that ignores case can't be mounted by FUSE here: {reason}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
        server.communicate(timeout=30)
