"""How a model comes into the cache: an unfinished download waits where `list` does not see it, and moves in whole.

The bytes of a model that is not in the cache wait in `hub/.models--org--name.incomplete`, those for one that is in its
own folder's `.incomplete`: always on the file system that they are for, so that moving them in is a rename.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlxk2.cache import naming

INCOMPLETE = ".incomplete"
PARTIAL = ".partial"
REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file of a revision as the hub describes it: its path, and the name (a hash) and size of the blob it is."""

    name: str
    blob: str
    size: int
    xet_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A model's folder in the cache, and the folder in which an unfinished download of it waits."""

    model: Path
    staging: Path

    @classmethod
    def of(cls, hub: Path, repo_id: str) -> Delivery:
        """The delivery of a model to a hub folder; nothing is written."""
        model = hub / naming.folder_of(repo_id)
        return cls(model, model / INCOMPLETE if model.is_dir() else hub / f".{model.name}{INCOMPLETE}")

    def staged(self, wanted: Wanted) -> Path:
        """Where a file waits that was fetched and verified."""
        return self.staging / "blobs" / wanted.blob

    def partial(self, wanted: Wanted) -> Path:
        """Where the bytes of an unfinished file are kept; the same name in every attempt."""
        return self.staging / "blobs" / (wanted.blob + PARTIAL)

    def blob(self, wanted: Wanted) -> Path:
        """Where the model keeps a file's bytes."""
        return self.model / "blobs" / wanted.blob

    def snapshot(self, commit: str) -> Path:
        """The folder of a revision's files."""
        return self.model / "snapshots" / commit

    def has_entry(self, commit: str, wanted: Wanted) -> bool:
        """Whether anything stands in a revision's folder under a file's name, be it sound or not."""
        return os.path.lexists(self.snapshot(commit) / wanted.name)

    def begin(self) -> None:
        """Make the folder for unfinished files."""
        (self.staging / "blobs").mkdir(parents=True, exist_ok=True)

    def finish(self, commit: str, wanted: Iterable[Wanted], ref: str | None) -> None:
        """Move a complete revision in: the model changes from the old one to the new in one rename.

        Every wanted file is staged or in the model's blobs. `ref` is the branch that names the commit from now on.
        """
        files = list(wanted)
        for remains in ("snapshots", "refs", REPLACED):
            shutil.rmtree(self.staging / remains, ignore_errors=True)
        new = self.staging / "snapshots" / commit
        new.mkdir(parents=True)
        if self.model.is_dir():
            self._move_blobs(files)
            _link_all(new, files, self.model)
            self._replace_snapshot(commit, new)
            write_ref(self.model, ref, commit)
        else:
            self._drop_all_but(files)
            _link_all(new, files, self.staging)
            write_ref(self.staging, ref, commit)
            self.staging.rename(self.model)
        self.clear()

    def clear(self) -> None:
        """Remove what is left of unfinished downloads."""
        for folder in (self.staging, self.model / INCOMPLETE, self.model.parent / f".{self.model.name}{INCOMPLETE}"):
            shutil.rmtree(folder, ignore_errors=True)

    def _move_blobs(self, files: list[Wanted]) -> None:
        (self.model / "blobs").mkdir(exist_ok=True)
        for file in files:
            if os.path.lexists(self.staged(file)):
                os.replace(self.staged(file), self.blob(file))

    def _drop_all_but(self, files: list[Wanted]) -> None:
        keep = {file.blob for file in files}
        for entry in list(os.scandir(self.staging / "blobs")):
            if entry.name not in keep:
                os.unlink(entry.path)

    def _replace_snapshot(self, commit: str, new: Path) -> None:
        place = self.snapshot(commit)
        place.parent.mkdir(exist_ok=True)
        if os.path.lexists(place):
            place.rename(self.staging / REPLACED)
        new.rename(place)


def write_ref(model: Path, ref: str | None, commit: str) -> None:
    """Let a branch name a commit; without a branch nothing is written."""
    if ref is None:
        return
    path = model / "refs" / ref
    path.parent.mkdir(parents=True, exist_ok=True)
    new = model / f"{INCOMPLETE}-ref"
    new.write_text(commit, encoding="ascii")
    new.replace(path)


def _link_all(snapshot: Path, files: Iterable[Wanted], model: Path) -> None:
    for file in files:
        path = snapshot / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        up = [".."] * (2 + file.name.count("/"))
        _link(os.path.join(*up, "blobs", file.blob), path, model / "blobs" / file.blob)


def _link(target: str, path: Path, blob: Path) -> None:
    try:
        path.symlink_to(target)
    except OSError:
        # A file system without links, as on many external disks: the bytes themselves stand in the snapshot.
        shutil.copyfile(blob, path)
