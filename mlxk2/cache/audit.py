"""Which files of a revision the cache has whole, and which must be fetched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mlxk2.cache.staging import Delivery, Wanted
from mlxk2.checkpoint import checksums, gguf, health, litter, safetensors
from mlxk2.checkpoint.files import BrokenFile, File

if TYPE_CHECKING:
    from mlxk2.formatting import Advance

MAX_SMALL_BYTES = 1 << 24

Check = Callable[[File, Wanted], bool]


class Audit:
    """The wanted files of a revision, sorted by what the cache has of them."""

    def __init__(self, delivery: Delivery, commit: str, wanted: Iterable[Wanted], check: Check) -> None:
        self._delivery = delivery
        self._snapshot = delivery.snapshot(commit)
        self._tree = delivery.tree
        self._check = check
        self._verdicts: dict[tuple[tuple[int, int], str], bool] = {}
        self._unreadable: set[tuple[tuple[int, int], str]] = set()
        # No revision is a link: what is behind one belongs to another.
        self._is_there = not self._snapshot.is_symlink()
        self.wanted = list(wanted)
        self.missing = [file for file in self.wanted if not self._has(file)]
        self.misplaced = [file for file in self.wanted if not self._is_placed(file)]
        self.spoilt = self._spoilt()
        self._spoilt_paths = set(self.spoilt)

    @property
    def is_sound(self) -> bool:
        """Whether all wanted files are in their places, and nothing else is there that does not belong."""
        return not (self.missing or self.misplaced or self.remains())

    def bad_blobs(self) -> list[Path]:
        """The blobs of missing files that are there, but are not what their name says; not those that can't be read."""
        paths = {self._delivery.blob(file): file for file in self.missing}
        return sorted(path for path, file in paths.items() if os.path.lexists(path) and self._can_be_read(path, file))

    def is_staged(self, file: Wanted) -> bool:
        """Whether a file waits, as good as the check can tell, since an earlier attempt."""
        path = self._delivery.staged(file)
        return os.path.lexists(path) and path not in self._spoilt_paths

    def _spoilt(self) -> list[Path]:
        """The files that wait since an earlier attempt, but are not, or no longer, what their name says."""
        staged = {self._delivery.staged(file): file for file in self.wanted}
        return sorted(path for path, file in staged.items() if os.path.lexists(path) and not self._is_good(path, file))

    def remains(self) -> list[str]:
        """What other downloads left in the snapshot's folder: unfinished files, links that lead nowhere; by name."""
        if not self._is_there or not self._snapshot.is_dir():
            return []
        names = {file.name for file in self.wanted}
        found = self._tree.files(str(self._snapshot), litter.is_litter)
        files = (file for file in found if file.name not in names)
        return [file.name for file in files if file.problem or file.name.endswith(health.PARTIAL)]

    def _has(self, file: Wanted) -> bool:
        return self._is_good(self._delivery.blob(file), file) or self._is_placed(file)

    def _is_placed(self, file: Wanted) -> bool:
        return self._is_there and self._is_good(self._snapshot / file.name, file)

    def _can_be_read(self, path: Path, wanted: Wanted) -> bool:
        file = self._tree.file(wanted.name, str(path))
        return file is None or (file.identity, wanted.blob) not in self._unreadable

    def _is_good(self, path: Path, wanted: Wanted) -> bool:
        file = self._tree.file(wanted.name, str(path)) if os.path.lexists(path) else None
        if file is None or file.problem or file.size != wanted.size or file.blob not in (None, wanted.blob):
            return False
        # A blob and the entries that lead to it are one file, which is read once.
        key = file.identity, wanted.blob
        if key not in self._verdicts:
            try:
                self._verdicts[key] = self._check(file, wanted)
            except BrokenFile:
                # Its mode, or a fault of the disk: it is fetched, and then takes the place of this one.
                self._verdicts[key] = False
                self._unreadable.add(key)
        return self._verdicts[key]


def looks_whole(file: File, wanted: Wanted) -> bool:
    """Whether a file is what it should be, as far as that is quick: small ones by hash, weights by header."""
    if file.size > MAX_SMALL_BYTES and _has_whole_header(file):
        return True
    # Also of a file that is damaged on the hub itself: as it is there, so it belongs here.
    return has_its_hash(lambda _: None)(file, wanted)


def has_its_hash(advance: Advance) -> Check:
    """A check of a file's bytes by the hash that names its blob; BrokenFile when they can't be read.

    `advance` gets the number of bytes as they are read.
    """

    def check(file: File, wanted: Wanted) -> bool:
        return checksums.digest(file._replace(blob=wanted.blob), advance) == wanted.blob

    return check


def _has_whole_header(file: File) -> bool:
    try:
        if file.name.endswith(".safetensors"):
            safetensors.read_metadata(file)
        elif file.name.endswith(".gguf"):
            gguf.check(file)
    except BrokenFile:
        return False
    return True
