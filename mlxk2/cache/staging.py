"""How a model comes into the cache: an unfinished download waits where `list` does not see it, and moves in whole.

The bytes of a model that is not in the cache wait in `hub/.models--org--name.incomplete`, those for one that is in its
own folder's `.incomplete`: always on the file system that they are for, so that moving them in is a rename.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxk2 import names
from mlxk2.cache import directory, refs
from mlxk2.checkpoint.files import Tree
from mlxk2.errors import OperationError, cause

PARTIAL = ".partial"

# How a file system says that it has no symbolic links: each has a number of its own, NFS one without a name.
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, 524}


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
        model = hub / names.folder_of(repo_id)
        return cls(model, model / names.INCOMPLETE if model.is_dir() else hub / unfinished(model.name))

    @property
    def tree(self) -> Tree:
        """What may be read for it: the hub folder, and the model's own, which may be a link that its user laid."""
        return Tree((os.path.realpath(self.model.parent), os.path.realpath(self.model)))

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

    def check_names(self, ref: str | None) -> None:
        """Raise OperationError where the disk takes the name of another model or ref for this one."""
        folder, name = self.model, names.repo_id_of(self.model.name)
        if not folder.is_dir():
            return
        here, beside = directory.name_on_disk(str(folder)), refs.in_the_way(ref, str(folder)) if ref else None
        real = Path(os.path.realpath(folder))
        if folder.is_symlink() and real.parent == Path(os.path.realpath(folder.parent)):
            raise OperationError(
                f"{name} is a link to the folder of {names.repo_id_of(real.name)}, which a pull would change.",
                hint="Remove that link, then pull again.",
            )
        if here != folder.name:
            other = names.repo_id_of(here)
            raise OperationError(
                f"This disk ignores case: the folder of {name} is the one that the cache has for {other}.",
                hint=f"If both are one model: mlxk2 pull {other}. Else set HF_HUB_CACHE to another disk.",
            )
        if beside is not None:
            raise OperationError(
                f"The cache keeps the branch {beside!r} of {name} where {ref!r} would be kept.",
                hint=f"Pull it by its commit: mlxk2 pull {name}@HASH",
            )

    def secure(self) -> None:
        """Let nothing that is written reach beyond the model's own folders by a link.

        OperationError when one of its folders is such a link; ours for unfinished downloads is removed.
        """
        own, name = Tree((os.path.realpath(self.model),)), names.repo_id_of(self.model.name)
        for folder in (self.model / "blobs", self.model / "snapshots", self.model / "refs"):
            if not own.contains(str(folder)):
                problem = f"The {folder.name} folder of {name} is a link that leads out of the model's folder."
                raise OperationError(problem, hint="Remove that link, then pull again.")
        for folder in (self.staging, self.staging / "blobs", self.staging / "snapshots", self.staging / "refs"):
            if folder.is_symlink():
                folder.unlink()

    def clear_places(self, commit: str, files: Iterable[Wanted]) -> None:
        """Remove empty folders from these files' places; OperationError when something is in one."""
        for file in files:
            for path in (self.snapshot(commit) / file.name, self.blob(file), self.staged(file), self.partial(file)):
                _clear(path)

    def begin(self) -> None:
        """Make the folder for unfinished files."""
        (self.staging / "blobs").mkdir(parents=True, exist_ok=True)

    def finish(self, commit: str, files: Sequence[Wanted], misplaced: Sequence[Wanted], ref: str | None) -> None:
        """Move a complete revision in: a model changes from the old one to the new in one rename.

        All files are staged or in the model's blobs. Where the revision is there already, those that are `misplaced` in
        its folder are put right one by one, and what else its user keeps there stays. `ref` names the commit then.
        """
        for remains in ("snapshots", "refs"):
            shutil.rmtree(self.staging / remains, ignore_errors=True)
        new = self.staging / "snapshots" / commit
        new.mkdir(parents=True)
        if not self.model.is_dir():
            self._drop_all_but(files)
            _link_all(new, files, self.staging)
            if ref is not None:
                refs.write(ref, commit, str(self.staging))
            self.staging.rename(self.model)
        else:
            self._move_blobs(files)
            self._place(commit, new, files, misplaced)
            self.point(ref, commit)

    def points(self, ref: str | None, commit: str) -> bool:
        """Whether the ref, if there is one, names the commit."""
        return ref is None or refs.commit_of(ref, str(self.model), self.tree) == commit

    def point(self, ref: str | None, commit: str) -> None:
        """Let the ref, if there is one, name the commit; nothing is written where it does."""
        if ref is not None and not self.points(ref, commit):
            refs.write(ref, commit, str(self.model))

    def _place(self, commit: str, new: Path, files: Sequence[Wanted], misplaced: Sequence[Wanted]) -> None:
        place = self.snapshot(commit)
        if place.is_symlink():
            place.unlink()
        if not place.exists():
            _link_all(new, files, self.model)
            place.parent.mkdir(exist_ok=True)
            new.rename(place)
            return
        _link_all(new, misplaced, self.model)
        for file in misplaced:
            target = place / file.name
            _make_folders(place, target.parent)
            os.replace(new / file.name, target)

    def has_remains(self) -> bool:
        """Whether anything is left of unfinished downloads, ours or others'."""
        return any(map(os.path.lexists, self._stagings())) or any(self.orphans())

    def orphans(self) -> Iterator[Path]:
        """What may be left among the model's blobs of a download by the library, or of a sharing."""
        for pattern in (f"*{names.INCOMPLETE}", ".*.shared"):
            yield from (self.model / "blobs").glob(pattern)

    def clear(self) -> None:
        """Remove what is left of our unfinished downloads."""
        for folder in self._stagings():
            shutil.rmtree(folder, ignore_errors=True)

    def _stagings(self) -> tuple[Path, Path]:
        return self.model / names.INCOMPLETE, self.model.with_name(unfinished(self.model.name))

    def _move_blobs(self, files: Sequence[Wanted]) -> None:
        (self.model / "blobs").mkdir(exist_ok=True)
        for file in files:
            if os.path.lexists(self.staged(file)):
                os.replace(self.staged(file), self.blob(file))

    def _drop_all_but(self, files: Sequence[Wanted]) -> None:
        keep = {file.blob for file in files}
        for entry in list(os.scandir(self.staging / "blobs")):
            if entry.name not in keep:
                # One that macOS laid beside another goes with it.
                Path(entry.path).unlink(missing_ok=True)


def unfinished(folder: str) -> str:
    """The folder beside a model's in which the first download of it waits."""
    return f".{folder}{names.INCOMPLETE}"


def _clear(path: Path) -> None:
    """Remove an empty folder that is in a file's place; OperationError when something is in it."""
    if path.is_symlink() or not path.is_dir():
        return
    try:
        path.rmdir()
    except OSError as fault:
        raise OperationError(
            f"A folder is where the file {path.name} of the model belongs: {cause(fault)}.",
            hint="Move that folder away, then pull again.",
        ) from fault


def _make_folders(snapshot: Path, folder: Path) -> None:
    """Make a folder below a snapshot; a link or a file on the way, which no revision has, gives way."""
    steps = [folder, *folder.parents]
    for step in reversed(steps[: steps.index(snapshot)]):
        if os.path.lexists(step) and (step.is_symlink() or not step.is_dir()):
            step.unlink()
        step.mkdir(exist_ok=True)


def _link_all(snapshot: Path, files: Sequence[Wanted], model: Path) -> None:
    uses = Counter(file.blob for file in files)
    for file in files:
        uses[file.blob] -= 1
        path = snapshot / file.name
        up = [".."] * (2 + file.name.count("/"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(os.path.join(*up, "blobs", file.blob))
        except (FileExistsError, NotADirectoryError) as fault:
            raise _collision(file) from fault
        except OSError as fault:
            if fault.errno not in _NO_LINKS:
                raise
            # As on many external disks: the bytes themselves stand in the snapshot.
            if os.path.lexists(path):
                raise _collision(file) from fault
            put = _copy if uses[file.blob] else os.replace
            put(model / "blobs" / file.blob, path)


def _collision(file: Wanted) -> OperationError:
    """Return what to say of a file whose name another file of the same snapshot has taken."""
    return OperationError(
        f"{file.name!r} can't be kept beside another file of the model: this disk takes their names for one.",
        hint="Set HF_HUB_CACHE to another disk, or ask the model's author to rename one of them.",
    )


def _copy(path: Path, target: Path) -> None:
    """Copy a file to a name that is free."""
    with path.open("rb") as source, target.open("xb") as copy:
        shutil.copyfileobj(source, copy)
