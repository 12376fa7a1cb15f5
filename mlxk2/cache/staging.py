"""The folder that collects a model's download, hidden from `list`; a complete download is moved into the cache.

The first download of a model is collected in `.models--org--name.incomplete` beside the model's folder, a later one in
`.incomplete` inside it. Both are on the model's file system, so that moving in is one rename.
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
    """A file of a revision on the hub: its path, and the name (a hash) and size of its blob."""

    name: str
    blob: str
    size: int
    xet_hash: str | None = None


@dataclass(frozen=True, slots=True)
class PullPlan:
    """The plan to bring the required `files` of a revision into the cache."""

    commit: str
    files: tuple[RemoteFile, ...]
    missing: tuple[RemoteFile, ...]  # The model has no undamaged bytes of these files.
    staged: frozenset[str]  # The blobs that an earlier pull has fetched.
    misplaced: tuple[RemoteFile, ...]  # The snapshot has no undamaged entry for these files.
    bad_blobs: tuple[Path, ...]  # Blobs of the model whose content does not match their hash.
    bad_staged: tuple[Path, ...]  # Blobs of an earlier pull whose content does not match their hash.
    leftovers: tuple[str, ...]  # Unfinished files and dangling links that other downloads left in the snapshot.

    @property
    def is_empty(self) -> bool:
        """Whether all required files are in their places, and the snapshot has no leftovers."""
        return not (self.missing or self.misplaced or self.leftovers)


@dataclass(frozen=True, slots=True)
class Staging:
    """A model's folder in the cache, and the folder that collects its download."""

    model: Path
    folder: Path

    @classmethod
    def of(cls, cache_dir: Path, repo_id: str) -> Staging:
        """Return the staging of a model in a cache, without writing anything."""
        model = cache_dir / names.folder_of(repo_id)
        return cls(model, model / names.INCOMPLETE if model.is_dir() else cache_dir / first_staging_folder(model.name))

    @property
    def tree(self) -> Tree:
        """The tree that may be read: the cache, and the real folder of the model if its folder is the user's link."""
        return Tree((os.path.realpath(self.model.parent), os.path.realpath(self.model)))

    def staged(self, file: RemoteFile) -> Path:
        """Return the path of a file that was fetched and verified, but not moved in."""
        return self.folder / "blobs" / file.blob

    def partial(self, file: RemoteFile) -> Path:
        """Return the path of an unfinished file; it is the same in every attempt."""
        return self.folder / "blobs" / (file.blob + PARTIAL)

    def blob(self, file: RemoteFile) -> Path:
        """Return the path of a file's blob in the model's folder."""
        return self.model / "blobs" / file.blob

    def snapshot(self, commit: str) -> Path:
        """Return the path of a revision's snapshot."""
        return self.model / "snapshots" / commit

    def has_entry(self, commit: str, file: RemoteFile) -> bool:
        """Return whether a revision's snapshot has an entry with a file's name, damaged or not."""
        return os.path.lexists(self.snapshot(commit) / file.name)

    def present_bytes(self, files: Sequence[RemoteFile]) -> int:
        """Return the number of bytes of these files that the model or the staging folder already has."""
        paths = {path: file.size for file in files for path in (self.blob(file), self.staged(file))}
        return sum(size for path, size in paths.items() if path.exists())

    def check_names(self, ref: str | None) -> None:
        """Raise OperationError when another model or ref has the same name on this disk."""
        folder, name = self.model, names.repo_id_of(self.model.name)
        if not folder.is_dir():
            return
        here, conflict = directory.name_on_disk(str(folder)), refs.find_conflict(str(folder), ref) if ref else None
        real = Path(os.path.realpath(folder))
        if folder.is_symlink() and real.parent == Path(os.path.realpath(folder.parent)):
            raise OperationError(
                f"{name} is a link to the folder of {names.repo_id_of(real.name)}, which a pull would change.",
                hint="Remove that link, then pull again.",
            )
        if here != folder.name:
            other = names.repo_id_of(here)
            raise OperationError(
                f"This disk ignores case, and the cache already has the folder of {other} in the place of {name}.",
                hint=f"If both are the same model: mlxk2 pull {other}. Otherwise set HF_HUB_CACHE to another disk.",
            )
        if conflict is not None:
            raise OperationError(
                f"The cache can't keep the branch {ref!r} of {name} together with its branch {conflict!r}.",
                hint=f"Pull it by its commit: mlxk2 pull {name}@HASH",
            )

    def secure(self) -> None:
        """Raise OperationError when a folder of the model is a link that leads out of it; remove links in staging."""
        own, name = Tree((os.path.realpath(self.model),)), names.repo_id_of(self.model.name)
        for folder in (self.model / "blobs", self.model / "snapshots", self.model / "refs"):
            if not own.contains(str(folder)):
                problem = f"The {folder.name} folder of {name} is a link that leads out of the model's folder."
                raise OperationError(problem, hint="Remove that link, then pull again.")
        for folder in (self.folder, self.folder / "blobs", self.folder / "snapshots", self.folder / "refs"):
            if folder.is_symlink():
                folder.unlink()

    def prepare(self, plan: PullPlan, to_fetch: Sequence[RemoteFile]) -> None:
        """Make the staging folder for the files to fetch, and remove damaged blobs and empty folders in the way.

        Raise OperationError, before any change, if the files do not fit on the disk. Raise it also if a folder that is
        not empty is in the place of a file.
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
        """Move the files of a plan into the model, write the commit to `ref`, and remove the staging folders.

        All files must be staged or in the model's `blobs/`. A new model appears in the cache through one rename. A
        model that is already in the cache gets a new revision through one rename.
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
                        # macOS removes its metadata file together with the file that the metadata describes.
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
        """Add the revision in the folder `new` to a model; if the model has it, replace misplaced entries one by one.

        Other files of the user in the revision's snapshot stay.
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
                # Every step on the path to a file must be a folder: remove a link or a file there.
                if os.path.lexists(step) and (step.is_symlink() or not step.is_dir()):
                    step.unlink()
                step.mkdir(exist_ok=True)
            os.replace(new / file.name, target)

    def is_settled(self, ref: str | None, commit: str) -> bool:
        """Return whether `ref` (if given) names the commit, and no unfinished download is left."""
        has_remains = any(map(os.path.lexists, self._folders())) or any(self.orphans())
        return not has_remains and (ref is None or self._is_current(ref, commit))

    def orphans(self) -> Iterator[Path]:
        """Yield unfinished files that huggingface_hub left in the model's `blobs/`."""
        for pattern in (f"*{names.INCOMPLETE}", ".*.shared"):
            yield from (self.model / "blobs").glob(pattern)

    def _is_current(self, ref: str, commit: str) -> bool:
        return refs.commit_of(str(self.model), ref, self.tree) == commit

    def _folders(self) -> tuple[Path, Path]:
        return self.model / names.INCOMPLETE, self.model.with_name(first_staging_folder(self.model.name))


def first_staging_folder(folder: str) -> str:
    """Return the name of the folder, beside a model's own, that collects the first download of the model."""
    return f".{folder}{names.INCOMPLETE}"


def _size(path: Path) -> int:
    return os.lstat(path).st_size if os.path.lexists(path) else 0


def _link_all(snapshot: Path, files: Sequence[RemoteFile], model: Path) -> None:
    """Link the files of a new snapshot to the model's blobs; on a disk without links, move or copy the bytes."""
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
            # Many external disks have no links: put the bytes into the snapshot.
            if os.path.lexists(path):
                raise _collision(file) from error
            blob = model / "blobs" / file.blob
            if uses[file.blob]:
                shutil.copyfile(blob, path)
            else:
                os.replace(blob, path)


def _collision(file: RemoteFile) -> OperationError:
    return OperationError(
        f"{file.name!r} can't be kept beside another file of the model: on this disk, both names are the same.",
        hint="Set HF_HUB_CACHE to another disk, or ask the model's author to rename one of them.",
    )
