"""Removing a model, or one revision of it: a plan, then its execution.

A model is whole or gone at every moment, and a killed removal is finished by the next one: `trash.py` tells how, and
`hidden.py` for disks that are too full for a trash.
Everything happens below a handle of the hub folder and no link is followed, so nothing outside can be reached.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from mlxk2 import names
from mlxk2.cache import belongings, directory, hidden, locks, scratch, space, staging, trash
from mlxk2.cache.directory import Usage
from mlxk2.cache.locks import Locks
from mlxk2.cache.scratch import Scratch
from mlxk2.cache.store import CachedModel
from mlxk2.cache.trash import Outcome, Remains, SharedStore
from mlxk2.errors import (
    AmbiguousMatchError,
    CachePermissionError,
    LocksPresentError,
    ModelNotFoundError,
    OperationError,
    cause,
)

_EARLIER_UNREADABLE = "The cache can't be looked through"
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)

STORE_MARKER = os.path.join("blobs", ".huggingface-shared-blobs")


@dataclass(frozen=True, slots=True)
class Removal:
    """What is to go: all of a model, or one `revision` of it; `freed_bytes` is what the disk will gain.

    `entries` are all that the hub folder has of the model: its `folder` or a link in that place, and the folder of a
    download that was never finished.
    """

    hub: str
    name: str
    folder: str
    entries: tuple[str, ...]
    revision: str | None
    revisions: tuple[str, ...]
    is_link: bool
    freed_bytes: int
    locks: Locks


class Earlier(NamedTuple):
    """What killed removals left, what was gained by finishing it, and why some of it could not be finished."""

    remains: list[Remains]
    outcome: Outcome
    problem: str | None = None


def has_shared_store(hub: str) -> bool:
    """Whether the repos of a hub folder share blobs."""
    return os.path.isfile(os.path.join(hub, STORE_MARKER))


def unfinished(hub: str, name: str) -> CachedModel | None:
    """The model of which the hub folder has nothing but a download that was never finished."""
    folder = names.folder_of(name)
    if not os.path.isdir(os.path.join(hub, staging.unfinished(folder))):
        return None
    return CachedModel(name, os.path.join(hub, folder), hub)


def check_readable(model: CachedModel) -> None:
    """Raise CachePermissionError when the operating system does not let the user see which snapshots a model has."""
    folder = os.path.basename(model.path)
    with _refused(model.name), directory.opened(model.hub) as hub:
        directory.names_in(folder, "snapshots", below=hub)


def plan(model: CachedModel, revision: str | None, store: SharedStore | None) -> Removal:
    """What goes with a model, or with one of its revisions; with the only one, all of the model."""
    revisions = model.revisions()
    with _refused(model.name), directory.opened(model.hub) as hub:
        folder = _folder_of(model.name, hub)
        is_link = os.path.islink(os.path.join(model.hub, folder))
        if revisions == [revision]:
            revision = None
        if revision is not None:
            _check_snapshots(model.name, folder, hub)
        own = (folder, staging.unfinished(folder))
        entries = [name for name in own if os.path.lexists(os.path.join(model.hub, name))]
        if not entries:
            raise FileNotFoundError
        usage, found = Usage(), locks.of_model(hub, folder)
        blobs = _count_all(hub, entries, usage) if revision is None else _count_one(hub, folder, revision, usage)
        _count_shared(model.hub, folder, blobs, store, usage)
        locks.count(hub, folder, found, usage)
    going = tuple(revisions) if revision is None else (revision,)
    return Removal(model.hub, model.name, folder, tuple(entries), revision, going, is_link, usage.bytes, found)


def _check_snapshots(name: str, folder: str, hub: int) -> None:
    """OperationError when the model's snapshots are behind a link: nothing is removed there."""
    with directory.folder(folder, "snapshots", below=hub) as snapshots:
        if snapshots is None:
            raise OperationError(
                f"The revisions of {name} are behind a link, where nothing is removed one by one.",
                hint=f"To remove the link itself: mlxk2 rm {name}",
            )


def _folder_of(name: str, hub: int) -> str:
    """The folder of a model. Names that are no UTF-8 may read alike: then nobody can say which is meant."""
    folders = [entry for entry in directory.names_in(below=hub) if entry.startswith(names.FOLDER_PREFIX)]
    found = [folder for folder in folders if names.repo_id_of(folder) == name]
    if len(found) > 1:
        raise AmbiguousMatchError(f"{len(found)} folders of the cache read as {name!r}.", [name])
    return found[0] if found else names.folder_of(name)


def _count_all(hub: int, entries: Iterable[str], usage: Usage) -> list[str]:
    """Add up all of a model; the names of its blobs."""
    blobs: list[str] = []
    for entry in entries:
        usage.add(entry, hub)
        blobs += directory.names_in(entry, "blobs", below=hub)
    return blobs


def _count_one(hub: int, folder: str, revision: str, usage: Usage) -> list[str]:
    """Add up what goes with one revision; the names of the blobs that only it needs."""
    snapshot = directory.folder(folder, "snapshots", revision, below=hub)
    with directory.folder(folder, below=hub) as model, snapshot as own:
        if model is None:
            raise FileNotFoundError
        others = [name for name in directory.names_in("snapshots", below=model) if name != revision]
        blobs = [] if own is None else belongings.blobs_only_of(own, model, others)
        parts = [("snapshots", revision), *(("blobs", blob) for blob in blobs)]
        for *parents, name in (*parts, *belongings.bookkeeping_of(revision, model)):
            with directory.folder(*parents, below=model) as parent:
                if parent is not None:
                    usage.add(name, parent)
        return blobs


def _count_shared(hub: str, folder: str, blobs: Iterable[str], store: SharedStore | None, usage: Usage) -> None:
    if store is None:
        return
    for payload in store.released_with(os.path.join(hub, folder, "blobs", blob) for blob in blobs):
        for path in store.files_of(payload):
            with suppress(FileNotFoundError):
                usage.add_status(os.lstat(path))


def execute(removal: Removal, store: SharedStore | None, *, force: bool) -> Outcome:
    """Do what the plan says.

    LocksPresentError when a download is at work, unless by `force`; ModelNotFoundError when someone else removed the
    model meanwhile.
    """
    with _refused(removal.name), directory.opened(removal.hub) as hub:
        try:
            with _trash_with(removal, hub, force) as (bin, usage), _deleting(removal.name):
                return trash.finish(bin, hub, removal.hub, store, usage)
        except OSError as error:
            # A trash takes room, if only a little.
            if error.errno not in space.FULL:
                raise
        return _remove_in_place(removal, hub, store, force)


@contextmanager
def _trash_with(removal: Removal, hub: int, force: bool) -> Iterator[tuple[Scratch, Usage]]:
    """Make a trash, move into it what goes, and count what was deleted at once; on failure everything is as it was."""
    usage = Usage()
    with scratch.created(trash.REVISION_PREFIX if removal.revision else trash.MODEL_PREFIX, hub) as bin:
        try:
            with _claimed(removal, hub, force):
                if removal.revision is None:
                    trash.take_model(removal.entries, hub, bin)
                else:
                    trash.take_revision(removal.folder, removal.revision, hub, bin)
                trash.gather(bin, hub, usage)
        except BaseException:
            # What was renamed stays for the next removal; without that, the trash is only ours.
            if not trash.remains_in(bin):
                scratch.remove(bin, hub)
            raise
        yield bin, usage


def _remove_in_place(removal: Removal, hub: int, store: SharedStore | None, force: bool) -> Outcome:
    """Remove without a trash, for which the disk is too full."""
    usage = Usage()
    with _claimed(removal, hub, force):
        hidden.hide(removal.folder, removal.revision, hub)
        with _deleting(removal.name):
            for entry in removal.entries if removal.revision is None else ():
                if entry != removal.folder:
                    usage.add(entry, hub)
                    directory.remove(entry, hub)
            hidden.delete(removal.folder, hub, usage, is_whole=removal.revision is None)
    with _deleting(removal.name):
        return _drop_hidden(removal.folder, hub, removal.hub, store, usage)


def _drop_hidden(folder: str, hub: int, hub_path: str, store: SharedStore | None, usage: Usage) -> Outcome:
    """Remove shared payloads and lock files, and last what is hidden: by it a killed removal is found."""
    if store is not None:
        trash.sweep_unreferenced(store, usage)
    try:
        if hidden.is_alone(folder, hub):
            # The disk has room for a trash now, unless others took it.
            with scratch.created(trash.MODEL_PREFIX, hub) as bin:
                _take_alone(folder, hub, bin)
                return trash.finish(bin, hub, hub_path, store, usage)
    except OSError as error:
        if error.errno not in space.FULL:
            raise
    cleaned = locks.clean(hub, folder, usage)
    hidden.drop(folder, hub, usage)
    if not directory.names_in(folder, below=hub):
        usage.add(folder, hub)
        directory.remove(folder, hub)
    return Outcome(usage.bytes, cleaned)


def _take_alone(folder: str, hub: int, bin: Scratch) -> None:
    """Move a model's folder into the trash, unless a download has begun in it."""
    with locks.claimed(hub, folder) as is_ours, suppress(FileNotFoundError):  # a link went before
        if is_ours and hidden.is_alone(folder, hub):
            trash.take_model((folder,), hub, bin)


@contextmanager
def _claimed(removal: Removal, hub: int, force: bool) -> Iterator[None]:
    """Let no download begin; LocksPresentError where one is at work, unless by `force`."""
    check_locks(removal, force)
    with locks.claimed(hub, removal.folder) as is_ours:
        if not is_ours:
            check_locks(removal, force, (f"{locks.FOLDER}/{removal.folder}/{locks.PULL_LOCK}",))
        yield


def check_locks(removal: Removal, force: bool, further: Iterable[str] = ()) -> None:
    """LocksPresentError when a living download holds locks of the model, unless by `force`."""
    living = sorted({*removal.locks.living, *further})
    if living and not force:
        raise LocksPresentError(
            f"A download of {removal.name} is at work ({len(living)} of its locks are held).",
            living,
            hint="Wait for its end, or remove the model all the same with --force.",
        )


def interrupted(hub_path: str) -> Earlier:
    """What killed removals left to be done, and the room that it takes."""
    usage = Usage()
    remains: list[Remains] = []
    with _explained(_EARLIER_UNREADABLE), directory.opened(hub_path) as hub:
        for bin in trash.abandoned(hub):
            remains += trash.remains_in(bin)
            trash.count(bin, usage)
        for folder in hidden.folders(hub):
            remains += hidden.remains_in(folder, hub)
            hidden.count(folder, hub, usage)
    return Earlier(remains, Outcome(usage.bytes, 0))


def finish_interrupted(hub_path: str, store: SharedStore | None) -> Earlier:
    """Do what killed removals left to be done, as far as that is possible: the rest is the next one's."""
    earlier = Earlier([], Outcome(0, 0))
    with _explained(_EARLIER_UNREADABLE), directory.opened(hub_path) as hub:
        for bin in trash.abandoned(hub):
            found = trash.remains_in(bin)
            earlier = _add(earlier, found, partial(trash.finish, bin, hub, hub_path, store))
        for folder in hidden.folders(hub):
            found = hidden.remains_in(folder, hub)
            earlier = _add(earlier, found, partial(_finish_hidden, folder, hub, hub_path, store))
        if store is not None:
            store.tidy()
    return earlier


def _add(earlier: Earlier, found: list[Remains], finish: Callable[[], Outcome | None]) -> Earlier:
    """Finish one more removal, and add up what came of it."""
    try:
        outcome = finish()
    except OSError as error:
        return earlier._replace(problem=_why(error))
    if outcome is None:
        return earlier
    sums = map(sum, zip(earlier.outcome, outcome, strict=True))
    return Earlier([*earlier.remains, *found], Outcome(*sums), earlier.problem)


def _finish_hidden(folder: str, hub: int, hub_path: str, store: SharedStore | None) -> Outcome | None:
    """Delete what is hidden of a model; None while a download of it is at work, which may need some of it."""
    usage = Usage()
    with locks.claimed(hub, folder) as is_ours:
        if not is_ours:
            return None
        hidden.delete(folder, hub, usage)
    return _drop_hidden(folder, hub, hub_path, store, usage)


@contextmanager
def _refused(name: str) -> Iterator[None]:
    """Say of faults that nothing of the model was removed; ModelNotFoundError where it is no longer there."""
    with _explained(f"{name} can't be removed", "Nothing of it was removed."):
        try:
            yield
        except FileNotFoundError as error:
            raise ModelNotFoundError(f"{name} is no longer in the cache.") from error


def _deleting(name: str) -> AbstractContextManager[None]:
    """Say of faults that the model is gone, but not all of its bytes."""
    message = f"{name} is removed, but not all of its files could be deleted"
    return _explained(message, hint="What is left goes with the next `mlxk2 rm`.")


@contextmanager
def _explained(message: str, rest: str = "", hint: str | None = None) -> Iterator[None]:
    """Turn faults of the disk into errors of the tree."""
    try:
        yield
    except OSError as error:
        kind = CachePermissionError if error.errno in _FORBIDDEN else OperationError
        raise kind(f"{message}: {_why(error)}. {rest}".rstrip(), hint=hint) from error


def _why(error: OSError) -> str:
    """Say why the operating system refused, and of which file or folder, unless it is one of ours."""
    name = os.path.basename(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else ""
    is_ours = name.startswith((trash.MODEL_PREFIX, trash.REVISION_PREFIX)) or name == scratch.LOCK
    return f"{names.readable(name)}: {cause(error)}" if name and not is_ours else cause(error)
