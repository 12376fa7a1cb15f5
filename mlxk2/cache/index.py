"""What `list` remembers of snapshots, for as long as nothing in them changes.

To describe a model, the places of a thousand tensors are read from its headers; a few `stat` calls show that nothing
has changed since. A snapshot is recognised by the inode, the size and the time of the last change (ctime, which no
program can set) of all its files and folders; on a disk that keeps no ctime, also by the first bytes of its files. Only
`list` remembers: `health`, `show` and `run` always look.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress

from mlxk2 import __version__
from mlxk2.checkpoint import compatibility
from mlxk2.checkpoint.files import BrokenFile, Tree, read
from mlxk2.checkpoint.model_info import ModelInfo
from mlxk2.checkpoint.snapshot import Snapshot

# A file that changes twice within one tick of the file system's clock shows one time. A younger change than this may
# hide another one, and is not remembered.
SETTLED_NS = 2_000_000_000
BEGINNING_BYTES = 1 << 18


class ListIndex:
    """What is known of the snapshots of a cache, kept in a file outside the cache."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._stamp = _stamp()
        self._known = self._load()
        self._seen: dict[str, tuple[str, ModelInfo]] = {}

    def describe(self, find: Callable[[], Snapshot]) -> ModelInfo:
        """Do what `describe.look` does, from memory where the snapshot that `find` finds has not changed."""
        snapshot = find()
        mark = fingerprint(snapshot)
        # Two folders may be one by a link, and what a model is also depends on its name.
        key = f"{snapshot.path}\0{snapshot.name}"
        known = self._known.get(key)
        if mark is not None and known is not None and known[0] == mark:
            self._seen[key] = known
            return known[1]
        from mlxk2.checkpoint.describe import look  # noqa: PLC0415 - its import takes as long as a hundred known models

        described, info = look(find)
        if mark is not None and described.key == snapshot.key:
            self._seen[key] = (mark, info)
        return info

    def save(self) -> None:
        """Write what was described to the file, if the disk allows it."""
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


def index_file(cache_dir: str, environment: Mapping[str, str]) -> str:
    """Return the path of the file that keeps what is known of a cache folder."""
    caches = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(caches, "mlxk2", f"list-{zlib.crc32(os.fsencode(cache_dir)):08x}.json")


def _stamp() -> str:
    """Return what a description depends on except the files: this program, mlx-lm, and what reads tokenizers."""
    folder = compatibility.mlx_lm_folder() or ""
    try:
        times = [os.stat(os.path.join(folder, name)).st_ctime_ns for name in ("utils.py", "models")]
    except OSError:
        times = []
    packages = list(filter(compatibility.is_installed, compatibility.TOKENIZER_PACKAGES))
    return f"{__version__} {folder} {times} {packages}"


def fingerprint(snapshot: Snapshot) -> str | None:
    """Return what stays the same while a folder is unchanged; None for one that just changed, or can't be read."""
    folder = snapshot.path
    if os.path.islink(folder) or os.path.islink(os.path.dirname(folder)):
        return None  # A link may lead anywhere, and is not followed before that is known.
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
        # On FAT, and other disks that keep no ctime, this is the time that any program may set. Headers, on which a
        # description rests, are among a file's first bytes.
        for file in Tree(snapshot.roots).files(snapshot.path):
            with suppress(BrokenFile):
                marks.append(f"{zlib.crc32(read(file, BEGINNING_BYTES)):x}")
    return " ".join(marks)
