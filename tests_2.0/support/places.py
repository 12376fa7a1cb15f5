"""Helpers for tests of the disk: contents and size of folders, mounted file systems, processes, checked envelopes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from support.shapes import assert_envelope

needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc, which is not there")
SCHEMA = Path(__file__).parents[2] / "docs" / "json-api-schema.json"


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def data_of(result: Any, command: str, *, code: int = 0) -> Any:
    """Return the data of a result's envelope, after a check of the envelope against this and the previous API."""
    assert result.code == code, result
    document = result.json
    _validator().validate(document)
    assert_envelope(document, command, "success" if code == 0 else "error")
    return document["data"]


def error_of(result: Any, command: str, *, code: int = 1) -> Any:
    """Return the error of a result's envelope, with the envelope's data as `data`."""
    data = data_of(result, command, code=code)
    return {**result.json["error"], "data": data}


def tree(folder: Path) -> dict[str, Any]:
    """Return everything below a folder: a file's bytes, a link's target, None for a folder."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def copied(folder: Path, place: Path) -> Path:
    """Replace `place` by a copy of a folder, links as they are, and return it."""
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(folder, place, symlinks=True))


def room(folder: Path) -> int:
    """Return the disk space of a folder in bytes, as du counts it."""
    said = subprocess.run(["du", "-s", "-k", folder], check=True, capture_output=True, text=True).stdout
    return int(said.split()[0]) * 1024


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[Path]:
    """Mount a file system at a new folder; skip the test where mounting is not permitted."""
    place.mkdir()
    if shutil.which("mount") is None or subprocess.run(["mount", *options, place], capture_output=True).returncode:
        pytest.skip(f"mount {' '.join(options)} is not permitted or not supported here")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def tmpfs(place: Path, size: str) -> Any:
    """Mount a small disk in memory."""
    return mounted(place, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")


@contextmanager
def ignoring_case(place: Path) -> Iterator[Path]:
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


def memory(pid: int) -> int:
    """Return the resident bytes of a process."""
    said = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(said.stdout) << 10


def group(leader: int) -> dict[int, str]:
    """Return the command lines of the living processes of a process group, by their ids; its leader may have ended."""
    command = ["ps", "-A", "-ww", "-o", "pid=,pgid=,stat=,args="]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    fields = [line.split(maxsplit=3) for line in said.splitlines()]
    return {
        int(pid): "".join(args)
        for pid, of, state, *args in fields
        if int(of) == leader and not state.startswith("Z")
    }
