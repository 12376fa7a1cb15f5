"""What `list` found out about snapshots before, for as long as nothing in them changes.

Judging a model means reading a thousand tensors' places out of headers; that nothing has changed since is told by a
few `stat` calls. A snapshot is recognised by the inode, the size and the time of the last change (ctime, which no
program can set) of all its files and folders; on a disk that keeps no ctime, by how its files begin too. Only `list`
remembers: `health`, `show` and `run` always look.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from mlxk2 import __version__
from mlxk2.checkpoint import compatibility
from mlxk2.checkpoint.files import BrokenFile, Tree, read
from mlxk2.checkpoint.model_info import ModelInfo
from mlxk2.checkpoint.snapshot import Snapshot

# A file that changes twice within one tick of the file system's clock shows one time: what is as young as this may
# still change unseen, and is not remembered.
SETTLED_NS = 2_000_000_000
BEGINNING_BYTES = 1 << 18


class Memory:
    """The verdicts on a hub folder's snapshots, kept in a file of their own outside the hub folder."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._stamp = _stamp()
        self._known = self._load()
        self._seen: dict[str, tuple[str, ModelInfo]] = {}

    def describe(self, find: Callable[[], Snapshot]) -> ModelInfo:
        """Do what `describe.look` does, from memory where the snapshot that `find` finds has not changed."""
        snapshot = find()
        mark, key = fingerprint(snapshot), _key(snapshot)
        known = self._known.get(key)
        if mark is not None and known is not None and known[0] == mark:
            self._seen[key] = known
            return known[1]
        from mlxk2.checkpoint.describe import look  # noqa: PLC0415 - its import takes as long as a hundred known models

        described, info = look(find)
        if mark is not None and described.place == snapshot.place:
            self._seen[key] = (mark, info)
        return info

    def save(self) -> None:
        """Remember what was described since; what can't be written is found out again the next time."""
        if self._seen == self._known:
            return
        unfinished = f"{self._file}.{os.getpid()}"
        try:
            os.makedirs(os.path.dirname(self._file), mode=0o700, exist_ok=True)
            with open(unfinished, "x", encoding="utf-8") as file:
                snapshots = {key: (mark, info._asdict()) for key, (mark, info) in self._seen.items()}
                json.dump({"stamp": self._stamp, "snapshots": snapshots}, file)
            os.replace(unfinished, self._file)
        except OSError:
            with suppress(OSError):
                os.unlink(unfinished)

    def _load(self) -> dict[str, tuple[str, ModelInfo]]:
        try:
            with open(self._file, encoding="utf-8") as file:
                content = json.load(file)
            known = content["snapshots"] if content["stamp"] == self._stamp else {}
            return {key: (mark, ModelInfo(**fields)) for key, (mark, fields) in known.items()}
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return {}  # No file yet, a file that was cut short, or entries of a version with other fields.


def memory_file(hub: str, environment: Mapping[str, str]) -> str:
    """Where the verdicts on a hub folder are kept."""
    caches = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(caches, "mlxk2", f"list-{zlib.crc32(os.fsencode(hub)):08x}.json")


def _stamp() -> str:
    """What the verdicts depend on beside the files: this program, mlx-lm, and what reads tokenizers."""
    folder = compatibility.mlx_lm_folder() or ""
    try:
        times = [os.stat(os.path.join(folder, name)).st_ctime_ns for name in ("utils.py", "models")]
    except OSError:
        times = []
    packages = list(filter(compatibility.is_installed, compatibility.TOKENIZER_PACKAGES))
    return f"{__version__} {folder} {times} {packages}"


def _key(snapshot: Snapshot) -> str:
    """By what a snapshot is found again: two folders may be one by a link, and a verdict also depends on the name."""
    return f"{snapshot.path}\0{snapshot.name}"


def fingerprint(snapshot: Snapshot) -> str | None:
    """By what an unchanged folder is recognised; None for one that just changed, or has what can't be looked at."""
    folder = snapshot.path
    if os.path.islink(folder) or os.path.islink(os.path.dirname(folder)):
        return None  # it may lead anywhere, and is not entered before that is known
    statuses: list[os.stat_result] = []
    pending = [folder]
    try:
        while pending:
            folder = pending.pop()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            folders = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            statuses += map(os.stat, (folder, *(entry.path for entry in entries if entry.path not in folders)))
            pending += folders
    except (OSError, ValueError):
        return None
    if max(status.st_ctime_ns for status in statuses) >= time.time_ns() - SETTLED_NS:
        return None
    marks = [f"{status.st_ino}:{status.st_size}:{status.st_ctime_ns}" for status in statuses]
    if all(status.st_ctime_ns == status.st_mtime_ns for status in statuses):
        # On FAT, and other disks that keep no ctime, this is the time that any program may set.
        marks += _beginnings(snapshot)
    return " ".join(marks)


def _beginnings(snapshot: Snapshot) -> Iterator[str]:
    """A checksum of what a verdict rests on: each file's first bytes, where headers are."""
    for file in Tree(snapshot.roots).files(snapshot.path):
        with suppress(BrokenFile):
            yield f"{zlib.crc32(read(file, BEGINNING_BYTES)):x}"
