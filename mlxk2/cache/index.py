"""The descriptions of models that `list` remembers; each is valid while its snapshot does not change.

Describing a model means reading a thousand tensor offsets from its headers. A few `stat` calls are enough to see that
the snapshot has not changed: they compare the inode, the size and the time of the last change (ctime, which no program
can set) of all its files and folders. On a disk without ctime, the first bytes of each file are compared too. Only
`list` uses remembered descriptions; `health`, `show` and `run` always read the files.
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

# A file that changes twice within one tick of the file system's clock keeps the same ctime. So a snapshot that changed
# less than this time ago is not remembered.
SETTLED_NS = 2_000_000_000
BEGINNING_BYTES = 1 << 18


class ListIndex:
    """Remembers the descriptions of a cache's snapshots in a file outside the cache."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._stamp = _stamp()
        self._known = self._load()
        self._seen: dict[str, tuple[str, ModelInfo]] = {}

    def describe(self, find: Callable[[], Snapshot]) -> ModelInfo:
        """Return the description of the snapshot that `find` returns, from memory if the snapshot has not changed."""
        snapshot = find()
        mark = fingerprint(snapshot)
        # A link can give one folder two names, and the description also depends on the model's name.
        key = f"{snapshot.path}\0{snapshot.name}"
        known = self._known.get(key)
        if mark is not None and known is not None and known[0] == mark:
            self._seen[key] = known
            return known[1]
        from mlxk2.checkpoint.describe import find_and_describe  # noqa: PLC0415 - importing it takes as long as 100 known models

        described, info = find_and_describe(find)
        if mark is not None and described.key == snapshot.key:
            self._seen[key] = (mark, info)
        return info

    def save(self) -> None:
        """Write the descriptions of this run to the file, if the disk allows it."""
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
            return {}  # The file is missing, truncated, or was written by a version with other fields.


def index_file(cache_dir: str, environment: Mapping[str, str]) -> str:
    """Return the path of the file with the remembered descriptions of a cache folder."""
    caches = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(caches, "mlxk2", f"list-{zlib.crc32(os.fsencode(cache_dir)):08x}.json")


def _stamp() -> str:
    """Return a text that changes with the versions of this program, of mlx-lm and of the tokenizer packages.

    Descriptions depend on the files and on these.
    """
    folder = compatibility.mlx_lm_folder() or ""
    try:
        times = [os.stat(os.path.join(folder, name)).st_ctime_ns for name in ("utils.py", "models")]
    except OSError:
        times = []
    packages = list(filter(compatibility.is_installed, compatibility.TOKENIZER_PACKAGES))
    return f"{__version__} {folder} {times} {packages}"


def fingerprint(snapshot: Snapshot) -> str | None:
    """Return a text that changes when the snapshot changes; None if it changed just now or can't be read."""
    folder = snapshot.path
    if os.path.islink(folder) or os.path.islink(os.path.dirname(folder)):
        return None  # A link can lead outside the cache; only the full description checks that.
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
        # FAT and some other disks keep no ctime, and any program can set the time they show. A description depends on
        # the headers of files, which are among their first bytes.
        for file in Tree(snapshot.roots).files(snapshot.path):
            with suppress(BrokenFile):
                marks.append(f"{zlib.crc32(read(file, BEGINNING_BYTES)):x}")
    return " ".join(marks)
