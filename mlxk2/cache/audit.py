"""Plan a pull: find the files of a revision that the cache lacks, and the damaged ones among those that it has."""

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

MAX_SMALL_BYTES = 1 << 24  # Larger weights are judged by their header, because hashing takes too long.

Check = Callable[[File, RemoteFile], bool]


def plan_pull(staging: Staging, commit: str, files: Sequence[RemoteFile], check: Check) -> PullPlan:
    """Compare the required files of a revision with the cache; `check` judges each file that exists."""
    judge = _Judge(staging.tree, check)
    snapshot = staging.snapshot(commit)
    # If the revision's folder is a link, its files belong to another model.
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
    """Judges files by a check; checks the bytes of a file with several names once."""

    def __init__(self, tree: Tree, check: Check) -> None:
        self._tree = tree
        self._check = check
        self._verdicts: dict[tuple[tuple[int, int], str], bool] = {}
        self._unreadable: set[tuple[tuple[int, int], str]] = set()

    def is_sound(self, path: Path, remote: RemoteFile) -> bool:
        """Return whether a file exists and has the size, blob name and content of the remote file."""
        file = self._tree.file(remote.name, str(path)) if os.path.lexists(path) else None
        if file is None or file.problem or file.size != remote.size or file.blob not in (None, remote.blob):
            return False
        key = file.identity, remote.blob
        if key not in self._verdicts:
            try:
                self._verdicts[key] = self._check(file, remote)
            except BrokenFile:
                # Its mode forbids reading it, or the disk fails: the pull will replace it.
                self._verdicts[key] = False
                self._unreadable.add(key)
        return self._verdicts[key]

    def is_damaged(self, path: Path, remote: RemoteFile) -> bool:
        """Return whether a file that `is_sound` rejected exists and can be read."""
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
            pass  # The file can be damaged on the hub too, so compare its hash.
    return hash_check(lambda _: None)(file, remote)


def hash_check(advance: Advance) -> Check:
    """Return a check that compares a file's hash with the name of its blob.

    The check raises BrokenFile if the bytes can't be read, and calls `advance` with the number of bytes that it read.
    """

    def check(file: File, remote: RemoteFile) -> bool:
        return checksums.digest(file._replace(blob=remote.blob), advance) == remote.blob

    return check
