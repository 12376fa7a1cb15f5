"""The plan of a pull: the files of a revision that the cache lacks, and what is wrong with those that it has."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlxk2.cache.staging import PullPlan, RemoteFile, Staging
from mlxk2.checkpoint import checksums, gguf, health, litter, safetensors
from mlxk2.checkpoint.files import BrokenFile, File, Tree

if TYPE_CHECKING:
    from mlxk2.formatting import Advance

MAX_SMALL_BYTES = 1 << 24  # Larger weights are judged by their header.

Check = Callable[[File, RemoteFile], bool]


def plan_pull(staging: Staging, commit: str, files: Sequence[RemoteFile], check: Check) -> PullPlan:
    """Compare the required files of a revision with the cache; `check` judges each file that is there."""
    judge = _Judge(staging.tree, check)
    snapshot = staging.snapshot(commit)
    # A revision's folder is never a link: what is behind one belongs to another model.
    has_snapshot = not snapshot.is_symlink()
    missing, misplaced = [], []
    for file in files:
        is_placed = has_snapshot and judge.is_sound(snapshot / file.name, file)
        if not is_placed:
            misplaced.append(file)
        if not judge.is_sound(staging.blob(file), file) and not is_placed:
            missing.append(file)
    bad_blobs = {staging.blob(file) for file in missing if judge.is_damaged(staging.blob(file), file)}
    waiting = {staging.staged(file): file for file in files if os.path.lexists(staging.staged(file))}
    bad_staged = {path for path, file in waiting.items() if not judge.is_sound(path, file)}
    leftovers = []
    if has_snapshot and snapshot.is_dir():
        names = {file.name for file in files}
        others = (file for file in staging.tree.files(str(snapshot), litter.is_litter) if file.name not in names)
        leftovers = [file.name for file in others if file.problem or file.name.endswith(health.PARTIAL)]
    return PullPlan(
        commit=commit,
        files=tuple(files),
        missing=tuple(missing),
        staged=frozenset(file.blob for path, file in waiting.items() if path not in bad_staged),
        misplaced=tuple(misplaced),
        bad_blobs=tuple(sorted(bad_blobs)),
        bad_staged=tuple(sorted(bad_staged)),
        leftovers=tuple(leftovers),
    )


class _Judge:
    """Judges files by a check, each one once, however many names lead to it."""

    def __init__(self, tree: Tree, check: Check) -> None:
        self._tree = tree
        self._check = check
        self._verdicts: dict[tuple[tuple[int, int], str], bool] = {}
        self._unreadable: set[tuple[tuple[int, int], str]] = set()

    def is_sound(self, path: Path, remote: RemoteFile) -> bool:
        """Return whether a file is there and is what it should be."""
        file = self._tree.file(remote.name, str(path)) if os.path.lexists(path) else None
        if file is None or file.problem or file.size != remote.size or file.blob not in (None, remote.blob):
            return False
        key = file.identity, remote.blob
        if key not in self._verdicts:
            try:
                self._verdicts[key] = self._check(file, remote)
            except BrokenFile:
                # Its mode forbids to read it, or the disk fails: a new file will take its place.
                self._verdicts[key] = False
                self._unreadable.add(key)
        return self._verdicts[key]

    def is_damaged(self, path: Path, remote: RemoteFile) -> bool:
        """Return whether a file that `is_sound` rejected is there and can be read."""
        if not os.path.lexists(path):
            return False
        file = self._tree.file(remote.name, str(path))
        return file is None or (file.identity, remote.blob) not in self._unreadable


def looks_whole(file: File, remote: RemoteFile) -> bool:
    """Check a file quickly: small ones by their hash, large weights by their header."""
    if file.size > MAX_SMALL_BYTES:
        try:
            if file.name.endswith(".safetensors"):
                safetensors.read_metadata(file)
            elif file.name.endswith(".gguf"):
                gguf.check(file)
            return True
        except BrokenFile:
            pass  # The file may be as damaged on the hub; its hash decides.
    return has_its_hash(lambda _: None)(file, remote)


def has_its_hash(advance: Advance) -> Check:
    """Return a check of a file's bytes by the hash that names its blob.

    The check raises BrokenFile if the bytes can't be read. `advance` gets the number of bytes as they are read.
    """

    def check(file: File, remote: RemoteFile) -> bool:
        return checksums.digest(file._replace(blob=remote.blob), advance) == remote.blob

    return check
