"""Where an unfinished download of a model waits, unseen by `list`, and how it moves in as a whole.

The first download of a model waits in `.models--org--name.incomplete` beside the model's folder, a later one in the
folder's own `.incomplete`: always on the model's own file system, so that moving in is a rename.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxk2 import names
from mlxk2.cache import directory, refs, space
from mlxk2.checkpoint.files import Tree
from mlxk2.errors import OperationError, cause

PARTIAL = ".partial"

# The errors of file systems without symbolic links; 524 is NFS's, which has no name in `errno`.
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, 524}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a revision as the hub describes it: its path, and the name (a hash) and size of its blob."""

    name: str
    blob: str
    size: int
    xet_hash: str | None = None


@dataclass(frozen=True, slots=True)
class PullPlan:
    """What a pull will do to bring the required `files` of a revision into the cache."""

    commit: str
    files: tuple[RemoteFile, ...]
    missing: tuple[RemoteFile, ...]  # the model has no sound bytes of these
    staged: frozenset[str]  # the blobs that an earlier pull has fetched
    misplaced: tuple[RemoteFile, ...]  # the snapshot has no sound entry for these
    bad_blobs: tuple[Path, ...]  # these bytes of the model are not what their name says
    bad_staged: tuple[Path, ...]  # nor are these of an earlier pull
    leftovers: tuple[str, ...]  # what other downloads left in the snapshot: unfinished files, links that lead nowhere

    @property
    def is_empty(self) -> bool:
        """Whether all required files are in their places, and nothing else is there that does not belong."""
        return not (self.missing or self.misplaced or self.leftovers)


@dataclass(frozen=True, slots=True)
class Staging:
    """A model's folder in the cache, and the folder in which an unfinished download of it waits."""

    model: Path
    folder: Path

    @classmethod
    def of(cls, cache_dir: Path, repo_id: str) -> Staging:
        """Return the staging of a model in a cache; nothing is written."""
        model = cache_dir / names.folder_of(repo_id)
        return cls(model, model / names.INCOMPLETE if model.is_dir() else cache_dir / unfinished(model.name))

    @property
    def tree(self) -> Tree:
        """Return what may be read for it: the cache, and the model's own folder, which may be the user's link."""
        return Tree((os.path.realpath(self.model.parent), os.path.realpath(self.model)))

    def staged(self, file: RemoteFile) -> Path:
        """Return where a file waits after it was fetched and verified."""
        return self.folder / "blobs" / file.blob

    def partial(self, file: RemoteFile) -> Path:
        """Return where the bytes of an unfinished file are kept; the same path in every attempt."""
        return self.folder / "blobs" / (file.blob + PARTIAL)

    def blob(self, file: RemoteFile) -> Path:
        """Return where the model keeps a file's bytes."""
        return self.model / "blobs" / file.blob

    def snapshot(self, commit: str) -> Path:
        """Return the folder of a revision's files."""
        return self.model / "snapshots" / commit

    def has_entry(self, commit: str, file: RemoteFile) -> bool:
        """Return whether anything has a file's name in a revision's folder, be it sound or not."""
        return os.path.lexists(self.snapshot(commit) / file.name)

    def present_bytes(self, files: Sequence[RemoteFile]) -> int:
        """Return the size of those files whose bytes the model or the staging folder has."""
        paths = {path: file.size for file in files for path in (self.blob(file), self.staged(file))}
        return sum(size for path, size in paths.items() if path.exists())

    def check_names(self, ref: str | None) -> None:
        """Raise OperationError when another model or ref has, on this disk, the same name."""
        folder, name = self.model, names.repo_id_of(self.model.name)
        if not folder.is_dir():
            return
        here, beside = directory.name_on_disk(str(folder)), refs.in_the_way(str(folder), ref) if ref else None
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
        """Raise OperationError when a folder of the model is a link that leads out of it; remove such links of ours."""
        own, name = Tree((os.path.realpath(self.model),)), names.repo_id_of(self.model.name)
        for folder in (self.model / "blobs", self.model / "snapshots", self.model / "refs"):
            if not own.contains(str(folder)):
                problem = f"The {folder.name} folder of {name} is a link that leads out of the model's folder."
                raise OperationError(problem, hint="Remove that link, then pull again.")
        for folder in (self.folder, self.folder / "blobs", self.folder / "snapshots", self.folder / "refs"):
            if folder.is_symlink():
                folder.unlink()

    def prepare(self, plan: PullPlan, to_fetch: Sequence[RemoteFile]) -> None:
        """Make the folder for the files that will be fetched, and remove what is in the way of the plan.

        Raise OperationError if the files do not fit on the disk (nothing has changed then), or a folder with something
        in it has the place of a file.
        """
        needed = {file.blob: file.size - _size(self.partial(file)) for file in to_fetch}
        bad = (*plan.bad_blobs, *plan.bad_staged)
        existing = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        space.check(
            names.repo_id_of(self.model.name),
            sum(needed.values()),
            existing,
            gained=sum(map(_size, bad)),
            alternative="set HF_HUB_CACHE to another disk",
        )
        snapshot = self.snapshot(plan.commit)
        for file in (*plan.missing, *plan.misplaced):
            for path in (snapshot / file.name, self.blob(file), self.staged(file), self.partial(file)):
                if path.is_symlink() or not path.is_dir():
                    continue
                try:
                    path.rmdir()
                except OSError as error:
                    raise OperationError(
                        f"A folder is where the file {path.name} of the model belongs: {cause(error)}.",
                        hint="Move that folder away, then pull again.",
                    ) from error
        (self.folder / "blobs").mkdir(parents=True, exist_ok=True)
        for path in bad:
            path.unlink(missing_ok=True)

    def move_in(self, plan: PullPlan, ref: str | None) -> None:
        """Move the files of a plan into the model, let `ref` name the commit, and remove what is left of staging.

        All files are staged or among the model's blobs. A model that is not in the cache appears in one rename; one
        that is changes from its old revision to the new one in one rename.
        """
        if not plan.is_empty:
            for name in plan.leftovers:
                (self.snapshot(plan.commit) / name).unlink(missing_ok=True)
            for earlier in ("snapshots", "refs"):
                shutil.rmtree(self.folder / earlier, ignore_errors=True)
            snapshot = self.folder / "snapshots" / plan.commit
            snapshot.mkdir(parents=True)
            if self.model.is_dir():
                self._change_model(plan, snapshot)
            else:
                blobs = {file.blob for file in plan.files}
                for entry in list(os.scandir(self.folder / "blobs")):
                    if entry.name not in blobs:
                        # macOS removes its metadata file together with the file that it belongs to.
                        Path(entry.path).unlink(missing_ok=True)
                _link_all(snapshot, plan.files, self.folder)
                if ref is not None:
                    refs.write(str(self.folder), ref, plan.commit)
                self.folder.rename(self.model)
        if ref is not None and not self._is_current(ref, plan.commit):
            refs.write(str(self.model), ref, plan.commit)
        for folder in self._folders():
            shutil.rmtree(folder, ignore_errors=True)

    def _change_model(self, plan: PullPlan, new: Path) -> None:
        """Add a revision to a model by its `new` folder; if it has the revision, replace misplaced entries one by one.

        What else the user keeps in the revision's folder stays.
        """
        (self.model / "blobs").mkdir(exist_ok=True)
        for file in plan.files:
            if os.path.lexists(self.staged(file)):
                os.replace(self.staged(file), self.blob(file))
        snapshot = self.snapshot(plan.commit)
        if snapshot.is_symlink():
            snapshot.unlink()
        if not snapshot.exists():
            _link_all(new, plan.files, self.model)
            snapshot.parent.mkdir(exist_ok=True)
            new.rename(snapshot)
            return
        _link_all(new, plan.misplaced, self.model)
        for file in plan.misplaced:
            target = snapshot / file.name
            steps = [target.parent, *target.parent.parents]
            for step in reversed(steps[: steps.index(snapshot)]):
                # A revision has only folders on the way to a file; a link or a file makes room.
                if os.path.lexists(step) and (step.is_symlink() or not step.is_dir()):
                    step.unlink()
                step.mkdir(exist_ok=True)
            os.replace(new / file.name, target)

    def is_settled(self, ref: str | None, commit: str) -> bool:
        """Return whether the ref, if there is one, names the commit, and nothing is left of unfinished downloads."""
        has_remains = any(map(os.path.lexists, self._folders())) or any(self.orphans())
        return not has_remains and (ref is None or self._is_current(ref, commit))

    def orphans(self) -> Iterator[Path]:
        """Yield what a download by the library, or a sharing, may have left among the model's blobs."""
        for pattern in (f"*{names.INCOMPLETE}", ".*.shared"):
            yield from (self.model / "blobs").glob(pattern)

    def _is_current(self, ref: str, commit: str) -> bool:
        return refs.commit_of(str(self.model), ref, self.tree) == commit

    def _folders(self) -> tuple[Path, Path]:
        return self.model / names.INCOMPLETE, self.model.with_name(unfinished(self.model.name))


def unfinished(folder: str) -> str:
    """Return the name of the folder beside a model's in which the first download of it waits."""
    return f".{folder}{names.INCOMPLETE}"


def _size(path: Path) -> int:
    return os.lstat(path).st_size if os.path.lexists(path) else 0


def _link_all(snapshot: Path, files: Sequence[RemoteFile], model: Path) -> None:
    """Link the files of a new snapshot to the model's blobs; without symbolic links, move or copy the bytes."""
    uses = Counter(file.blob for file in files)
    for file in files:
        uses[file.blob] -= 1
        path = snapshot / file.name
        up = [".."] * (2 + file.name.count("/"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(os.path.join(*up, "blobs", file.blob))
        except (FileExistsError, NotADirectoryError) as error:
            raise _collision(file) from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # Many external disks have no links: keep the bytes themselves in the snapshot.
            if os.path.lexists(path):
                raise _collision(file) from error
            blob = model / "blobs" / file.blob
            if uses[file.blob]:
                shutil.copyfile(blob, path)
            else:
                os.replace(blob, path)


def _collision(file: RemoteFile) -> OperationError:
    return OperationError(
        f"{file.name!r} can't be kept beside another file of the model: this disk takes their names for one.",
        hint="Set HF_HUB_CACHE to another disk, or ask the model's author to rename one of them.",
    )
