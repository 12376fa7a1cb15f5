"""Remove a model or one of its revisions: first plan, then execute.

At every moment a model is complete or gone. First it is renamed into a trash folder, or hidden in its own folder if the
disk is too full for a trash. Then its files are deleted. If a removal is killed, the next one finishes it (`trash.py`).
All work happens below the open cache folder, and no link is followed, so nothing outside the cache can be deleted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import chain
from typing import NamedTuple

from mlxk2 import names
from mlxk2.cache import locks, refs, scratch, space, staging
from mlxk2.cache.directory import Directory
from mlxk2.cache.locks import Locks
from mlxk2.cache.space import Usage
from mlxk2.cache.store import CachedModel
from mlxk2.cache.trash import (
    MODEL_PREFIX,
    REVISION_PREFIX,
    Freed,
    Hidden,
    Interrupted,
    SharedStore,
    Trash,
    find_abandoned,
)
from mlxk2.errors import (
    AmbiguousMatchError,
    CachePermissionError,
    LocksPresentError,
    ModelNotFoundError,
    OperationError,
    cause,
)

STORE_MARKER = os.path.join("blobs", ".huggingface-shared-blobs")

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class Removal(NamedTuple):
    """The plan to remove a whole model, or one `revision` of it.

    `entries` are the names in the cache folder that belong to the model: its `folder` (or a link with that name), and
    the folder of an unfinished download. `revisions` are those that will be removed, and `freed_bytes` is the disk
    space that becomes free. `listed_bytes` is the size of the revision, or the size of the whole model that `list`
    shows; `kept_bytes` of these stay, because other revisions or models need them.
    """

    cache_dir: str
    name: str
    folder: str
    entries: tuple[str, ...]
    revision: str | None
    revisions: tuple[str, ...]
    is_link: bool
    freed_bytes: int
    listed_bytes: int
    kept_bytes: int
    locks: Locks


class Recovery(NamedTuple):
    """The killed removals that were found, the space that finishing them frees, and why some can't be finished."""

    removals: list[Interrupted]
    freed: Freed
    problem: str | None = None


def has_shared_store(cache_dir: str) -> bool:
    """Return whether the repos of a cache share blobs."""
    return os.path.isfile(os.path.join(cache_dir, STORE_MARKER))


def find_unfinished(cache_dir: str, name: str) -> CachedModel | None:
    """Return the model if the cache has only an unfinished download of it, or None."""
    folder = names.folder_of(name)
    if not os.path.isdir(os.path.join(cache_dir, staging.first_staging_folder(folder))):
        return None
    return CachedModel(name, os.path.join(cache_dir, folder), cache_dir)


def check_readable(model: CachedModel) -> None:
    """Raise CachePermissionError when the operating system does not let the user read a model's snapshots."""
    with _explain_refusal(model.name), Directory.at(model.cache_dir) as cache_dir:
        cache_dir.names(os.path.basename(model.path), "snapshots")


def plan(model: CachedModel, revision: str | None, store: SharedStore | None) -> Removal:
    """Plan the removal of a model or of one revision; removing the only revision removes the whole model."""
    revisions = model.revisions()
    if revisions == [revision]:
        revision = None
    with _explain_refusal(model.name), Directory.at(model.cache_dir) as cache_dir:
        # Names that are not UTF-8 can look the same as text; then it is unknown which one the user means.
        folders = [folder for folder in cache_dir.names() if folder.startswith(names.FOLDER_PREFIX)]
        alike = [folder for folder in folders if names.repo_id_of(folder) == model.name]
        if len(alike) > 1:
            raise AmbiguousMatchError(f"{len(alike)} folders of the cache read as {model.name!r}.", [model.name])
        folder = alike[0] if alike else names.folder_of(model.name)
        entries = tuple(entry for entry in (folder, staging.first_staging_folder(folder)) if cache_dir.has(entry))
        usage = Usage()
        if revision is None:
            if not entries:
                raise FileNotFoundError
            for entry in entries:
                usage.add(cache_dir, entry)
            blobs = [blob for entry in entries for blob in cache_dir.names(entry, "blobs")]
        else:
            blobs = _count_revision(cache_dir, folder, model.name, revision, usage)
        gone = [os.path.join(model.cache_dir, folder, "blobs", blob) for blob in blobs]
        gone += [] if store is None else _count_payloads(store, gone, usage)
        listed, kept = _sizes_of(model, revision, set(gone))
        found = locks.find(cache_dir, folder)
        locks.count(cache_dir, folder, found, usage)
        return Removal(
            cache_dir=model.cache_dir,
            name=model.name,
            folder=folder,
            entries=entries,
            revision=revision,
            revisions=tuple(revisions) if revision is None else (revision,),
            is_link=cache_dir.link_target(folder) is not None,
            freed_bytes=usage.bytes,
            listed_bytes=listed,
            kept_bytes=kept,
            locks=found,
        )


def _count_payloads(store: SharedStore, blobs: Iterable[str], usage: Usage) -> list[str]:
    """Add the size of the shared payloads that are removed with these blobs to `usage`; return their paths."""
    payloads = store.released_with(blobs)
    for path in chain.from_iterable(map(store.files_of, payloads)):
        with suppress(FileNotFoundError):
            usage.add_status(os.lstat(path))
    return payloads


def _sizes_of(model: CachedModel, revision: str | None, gone: Collection[str]) -> tuple[int, int]:
    """Return the size of the revision, or of the one that `list` shows, and how many of its bytes stay on the disk.

    `gone` are the paths of the blobs and payloads that are removed.
    """
    if not model.revisions():
        return 0, 0
    snapshot = model.snapshot() if revision is None else model.snapshot_at(revision)
    own = os.path.join(snapshot.path, "")
    kept = {file.identity: file.size for file in snapshot.files if not (file.path in gone or file.path.startswith(own))}
    return snapshot.size_bytes, sum(kept.values())


def _count_revision(cache_dir: Directory, folder: str, name: str, revision: str, usage: Usage) -> list[str]:
    """Count the files that only one revision needs; return the names of the blobs among them."""
    with (
        cache_dir.open(folder) as model,
        cache_dir.open(folder, "snapshots") as snapshots,
        cache_dir.open(folder, "snapshots", revision) as own,
    ):
        if model is None or snapshots is None:
            raise OperationError(
                f"The revisions of {name} are behind a link, where single revisions are not removed.",
                hint=f"To remove the link itself: mlxk2 rm {name}",
            )
        others = [other for other in snapshots.names() if other != revision]
        places = list(refs.places_only_of(model, revision, own, others))
        for place in (("snapshots", revision), *places):
            usage.add(model, *place)
        return [place[-1] for place in places if place[0] == "blobs"]


def execute(removal: Removal, store: SharedStore | None, *, force: bool) -> Freed:
    """Execute the plan.

    Raise LocksPresentError when a download is running and `force` is false. Raise ModelNotFoundError when another
    process has already removed the model.
    """
    with _explain_refusal(removal.name), Directory.at(removal.cache_dir) as cache_dir:
        try:
            with Trash.create(cache_dir, REVISION_PREFIX if removal.revision else MODEL_PREFIX, store) as trash:
                try:
                    with _claim(removal, cache_dir, force):
                        if removal.revision is None:
                            trash.take_model(removal.entries)
                        else:
                            trash.take_revision(removal.folder, removal.revision)
                        trash.gather()
                except BaseException:
                    # If something was moved in, the trash stays, and the next removal deletes it.
                    trash.remove_if_unused()
                    raise
                with _explain_leftovers(removal.name):
                    return trash.finish()
        except OSError as error:
            # Even an empty trash needs some space on the disk.
            if error.errno not in space.FULL:
                raise
        hidden = Hidden(cache_dir, removal.folder, store)
        with _claim(removal, cache_dir, force):
            hidden.hide(removal.revision)
            with _explain_leftovers(removal.name):
                is_whole = removal.revision is None
                beside = [entry for entry in removal.entries if entry != removal.folder] if is_whole else []
                hidden.delete(is_whole=is_whole, beside=beside)
        with _explain_leftovers(removal.name):
            return hidden.drop()


@contextmanager
def _claim(removal: Removal, cache_dir: Directory, force: bool) -> Iterator[None]:
    """Keep downloads from starting; raise LocksPresentError when one is running and `force` is false."""
    check_locks(removal, force)
    with locks.claim(cache_dir, removal.folder) as is_ours:
        if not is_ours:
            check_locks(removal, force, (f"{locks.FOLDER}/{removal.folder}/{locks.PULL_LOCK}",))
        yield


def check_locks(removal: Removal, force: bool, others: Iterable[str] = ()) -> None:
    """Raise LocksPresentError when a running download holds locks of the model and `force` is false.

    `others` are locks that were found after the removal was planned.
    """
    living = sorted({*removal.locks.living, *others})
    if living and not force:
        raise LocksPresentError(
            f"A download of {removal.name} is running ({len(living)} of its locks are held).",
            living,
            hint="Wait until it ends, or remove the model anyway with --force.",
        )


def plan_recovery(path: str) -> Recovery:
    """Find the removals that were killed, and the space that finishing them would free."""
    usage = Usage()
    removals: list[Interrupted] = []
    with _explain_unreadable(), Directory.at(path) as cache_dir:
        for left in find_abandoned(cache_dir, None):
            removals += left.removals()
            left.count(usage)
    return Recovery(removals, Freed(usage.bytes, 0))


def recover(path: str, store: SharedStore | None) -> Recovery:
    """Finish the removals that were killed, as far as possible; the next removal tries the rest."""
    removals: list[Interrupted] = []
    freed, problem = Freed(0, 0), None
    with _explain_unreadable(), Directory.at(path) as cache_dir:
        for left in find_abandoned(cache_dir, store):
            found = left.removals()
            try:
                done = left.finish()
            except OSError as error:
                problem = _why(error)
                continue
            if done is not None:
                removals += found
                freed = freed.plus(done)
        if store is not None:
            store.tidy()
    return Recovery(removals, freed, problem)


def _explain_unreadable() -> AbstractContextManager[None]:
    return _explain("The cache can't be searched")


@contextmanager
def _explain_refusal(name: str) -> Iterator[None]:
    """Say in errors that nothing of the model was removed; raise ModelNotFoundError when it no longer exists."""
    with _explain(f"{name} can't be removed", "Nothing of it was removed."):
        try:
            yield
        except FileNotFoundError as error:
            raise ModelNotFoundError(f"{name} is no longer in the cache.") from error


def _explain_leftovers(name: str) -> AbstractContextManager[None]:
    """Say in errors that the model is removed, but not all of its files are deleted."""
    message = f"{name} is removed, but not all of its files could be deleted"
    return _explain(message, hint="The next `mlxk2 rm` deletes the rest.")


@contextmanager
def _explain(message: str, rest: str = "", hint: str | None = None) -> Iterator[None]:
    """Turn errors of the disk into errors for the user."""
    try:
        yield
    except OSError as error:
        kind = CachePermissionError if error.errno in _FORBIDDEN else OperationError
        raise kind(f"{message}: {_why(error)}. {rest}".rstrip(), hint=hint) from error


def _why(error: OSError) -> str:
    """Return the operating system's message, and the file or folder that it is about if the user knows that name."""
    name = os.path.basename(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else ""
    is_ours = name.startswith((MODEL_PREFIX, REVISION_PREFIX)) or name == scratch.LOCK
    return f"{names.readable(name)}: {cause(error)}" if name and not is_ours else cause(error)
