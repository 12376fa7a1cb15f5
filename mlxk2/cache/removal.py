"""Removing a model, or one revision of it: a plan, then its execution.

A model is whole or gone at every moment, and a killed removal is finished by the next one: `trash.py` tells how.
Everything happens below a handle of the hub folder and no link is followed, so nothing outside can be reached.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from mlxk2.cache import belongings, delivery, handles, locks, naming, scratch, trash
from mlxk2.cache.handles import Usage
from mlxk2.cache.locks import Locks
from mlxk2.cache.store import CachedModel
from mlxk2.cache.trash import Outcome, Remains, SharedStore
from mlxk2.errors import AmbiguousMatchError, LocksPresentError, ModelNotFoundError, OperationError

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
    folder = naming.folder_of(name)
    if not os.path.isdir(os.path.join(hub, delivery.unfinished(folder))):
        return None
    return CachedModel(name, os.path.join(hub, folder), hub)


def plan(model: CachedModel, revision: str | None, store: SharedStore | None) -> Removal:
    """What goes with a model, or with one of its revisions; with the only one, all of the model."""
    revisions = model.revisions()
    with _explained(model.name), handles.opened(model.hub) as hub:
        folder = _folder_of(model.name, hub)
        is_link = os.path.islink(os.path.join(model.hub, folder))
        if revisions == [revision]:
            revision = None
        if revision is not None:
            _check_snapshots(model.name, folder, hub)
        own = (folder, delivery.unfinished(folder))
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
    with handles.folder(folder, "snapshots", below=hub) as snapshots:
        if snapshots is None:
            raise OperationError(
                f"The revisions of {name} are behind a link, where nothing is removed one by one.",
                hint=f"To remove the link itself: mlxk2 rm {name}",
            )


def _folder_of(name: str, hub: int) -> str:
    """The folder of a model. Names that are no UTF-8 may read alike: then nobody can say which is meant."""
    folders = [entry for entry in handles.names_in(below=hub) if entry.startswith(naming.FOLDER_PREFIX)]
    found = [folder for folder in folders if naming.repo_id_of(folder) == name]
    if len(found) > 1:
        raise AmbiguousMatchError(f"{len(found)} folders of the cache read as {name!r}.", [name])
    return found[0] if found else naming.folder_of(name)


def _count_all(hub: int, entries: Iterable[str], usage: Usage) -> list[str]:
    """Add up all of a model; the names of its blobs."""
    blobs: list[str] = []
    for entry in entries:
        usage.add(entry, hub)
        blobs += handles.names_in(entry, "blobs", below=hub)
    return blobs


def _count_one(hub: int, folder: str, revision: str, usage: Usage) -> list[str]:
    """Add up what goes with one revision; the names of the blobs that only it needs."""
    with handles.folder(folder, below=hub) as model, handles.folder(folder, "snapshots", revision, below=hub) as own:
        if model is None:
            raise FileNotFoundError
        others = [name for name in handles.names_in("snapshots", below=model) if name != revision]
        blobs = [] if own is None else belongings.blobs_only_of(own, model, others)
        parts = [("snapshots", revision), *(("blobs", blob) for blob in blobs)]
        for *parents, name in (*parts, *belongings.bookkeeping_of(revision, model)):
            with handles.folder(*parents, below=model) as parent:
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
    prefix = trash.REVISION_PREFIX if removal.revision else trash.MODEL_PREFIX
    with _explained(removal.name), handles.opened(removal.hub) as hub, scratch.created(prefix, hub) as bin:
        try:
            _take(removal, hub, bin, force)
        except BaseException:
            # What was renamed stays for the next removal; without that, the trash is only ours.
            if not trash.remains_in(bin):
                scratch.remove(bin, hub)
            raise
        return trash.finish(bin, hub, removal.hub, store)


def _take(removal: Removal, hub: int, bin: scratch.Scratch, force: bool) -> None:
    """Move into the trash what goes, while no download can begin."""
    check_locks(removal, force)
    with locks.claimed(hub, removal.folder) as is_ours:
        if not is_ours:
            check_locks(removal, force, (f"{locks.FOLDER}/{removal.folder}/{locks.PULL_LOCK}",))
        if removal.revision is None:
            trash.take_model(removal.entries, hub, bin)
        else:
            trash.take_revision(removal.folder, removal.revision, hub, bin)
        trash.gather(bin, hub)


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
    with _explained("The cache"), handles.opened(hub_path) as hub:
        for bin in trash.abandoned(hub):
            remains += trash.remains_in(bin)
            trash.count(bin, usage)
    return Earlier(remains, Outcome(usage.bytes, 0))


def finish_interrupted(hub_path: str, store: SharedStore | None) -> Earlier:
    """Do what killed removals left to be done, as far as that is possible: the rest is the next one's."""
    remains: list[Remains] = []
    freed = cleaned = 0
    problem = None
    with _explained("The cache"), handles.opened(hub_path) as hub:
        for bin in trash.abandoned(hub):
            found = trash.remains_in(bin)
            try:
                outcome = trash.finish(bin, hub, hub_path, store)
            except OSError as error:
                problem = error.strerror
                continue
            remains += found
            freed, cleaned = freed + outcome.freed_bytes, cleaned + outcome.lock_files_cleaned
    return Earlier(remains, Outcome(freed, cleaned), problem)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Faults of the disk as errors of the tree."""
    try:
        yield
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{name} is no longer in the cache.") from error
    except OSError as error:
        raise OperationError(
            f"{name} can't be removed completely: {error.strerror}.", hint="What is left goes with the next `mlxk2 rm`."
        ) from error
