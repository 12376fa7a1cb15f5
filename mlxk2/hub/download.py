"""A revision of a repo into a cache: only what is missing or damaged is fetched, and the model changes in one step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mlxk2 import names
from mlxk2.cache import locks, space
from mlxk2.cache.audit import Audit, has_its_hash, looks_whole
from mlxk2.cache.staging import Delivery, Wanted
from mlxk2.hub import private, repos, sharing
from mlxk2.hub.client import Connection
from mlxk2.hub.errors import translated
from mlxk2.hub.fetching import fetch_all
from mlxk2.hub.repos import Revision
from mlxk2.hub.transfer import Source

if TYPE_CHECKING:
    from mlxk2.formatting import Progress

NOTICE_SECONDS = 1.0

Notify = Callable[[str], object]


class Download(NamedTuple):
    """What came of a download.

    `fetched` and `repaired` are names of files, `resumed_bytes` were there from an earlier attempt. `left_out` counts
    the files of the revision that were neither there nor wanted.
    """

    fetched: tuple[str, ...]
    repaired: tuple[str, ...]
    resumed_bytes: int
    left_out: int = 0

    @property
    def changed(self) -> bool:
        """Whether anything in the cache is different now."""
        return bool(self.fetched or self.repaired)


def download(
    connection: Connection,
    revision: Revision,
    hub: Path,
    progress: Progress,
    *,
    notify: Notify,
    by_hash: bool = False,
    complete: bool = True,
) -> Download:
    """Bring a revision into a hub folder, complete and verified, and let its branch name it.

    Files that are there are judged quickly, or all `by_hash`; unless it is to be `complete`, no others are wanted.
    Raises errors of the tree. Until the last file is there, a model that was in the cache stays at its old revision,
    and one that was not is not in it.
    """
    source = Source(connection, revision)
    files = repos.files(connection, revision)
    with translated(revision.repo_id):
        delivery = Delivery.of(hub, revision.repo_id)
        delivery.check_names(revision.ref)
        wanted = files if complete else [file for file in files if delivery.has_entry(revision.commit, file)]
        done = Download((), (), 0, left_out=len(files) - len(wanted))
        if not by_hash and _is_settled(delivery, revision, Audit(delivery, revision.commit, wanted, looks_whole)):
            return done  # without a lock, which could not be taken in a cache that may only be read
        with _alone(hub, revision.repo_id, notify):
            delivery = Delivery.of(hub, revision.repo_id)
            delivery.check_names(revision.ref)
            delivery.secure()
            if not delivery.snapshot(revision.commit).is_dir():
                wanted, done = files, done._replace(left_out=0)  # it was removed while this waited
            audit = _audit(delivery, revision, wanted, progress, by_hash)
            if not audit.is_sound:
                done = _deliver(source, hub, delivery, audit, progress, by_hash)._replace(left_out=done.left_out)
            delivery.point(revision.ref, revision.commit)
            delivery.clear()
            sharing.settle(hub, delivery, wanted)
    return done


def _is_settled(delivery: Delivery, revision: Revision, audit: Audit) -> bool:
    """Whether nothing is left to do: no file, no branch, no remains of a download."""
    return audit.is_sound and delivery.points(revision.ref, revision.commit) and not delivery.has_remains()


@contextmanager
def _alone(hub: Path, repo_id: str, notify: Notify) -> Iterator[None]:
    """Hold the lock of a model's downloads; wait for another process that has it, and say so."""
    lock = hub / locks.FOLDER / names.folder_of(repo_id) / locks.PULL_LOCK
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(private.WeakFileLock(lock, timeout=NOTICE_SECONDS))
        except private.Timeout:
            notify(f"Another pull of {repo_id} is running; waiting for it.")
            held.enter_context(private.WeakFileLock(lock))
        except OSError as error:
            if error.errno not in locks.UNSUPPORTED:
                raise
        if not locks.is_held(lock):
            # A disk without locks: a file that stays would count as held for a day.
            held.callback(lock.unlink, missing_ok=True)
        yield


def _audit(delivery: Delivery, revision: Revision, wanted: list[Wanted], progress: Progress, by_hash: bool) -> Audit:
    if not by_hash:
        return Audit(delivery, revision.commit, wanted, looks_whole)
    places = ((file, place) for file in wanted for place in (delivery.blob(file), delivery.staged(file)))
    present = {place: file.size for file, place in places if place.exists()}
    with progress("Hashing", sum(present.values())) as advance:
        return Audit(delivery, revision.commit, wanted, has_its_hash(advance))


def _deliver(
    source: Source, hub: Path, delivery: Delivery, audit: Audit, progress: Progress, by_hash: bool
) -> Download:
    revision = source.revision
    damaged = audit.bad_blobs()
    untrusted = {path.name for path in damaged}
    trusted = [] if by_hash else [file for file in audit.missing if file.blob not in untrusted]
    in_store = [file for file in trusted if sharing.has(hub, file)]
    in_hand = {file.name for file in in_store}
    missing = [file for file in audit.missing if file.name not in in_hand and not audit.is_staged(file)]
    _check_space(revision.repo_id, delivery, missing, [*damaged, *audit.spoilt])
    delivery.clear_places(revision.commit, [*audit.missing, *audit.misplaced])
    delivery.begin()
    for path in (*damaged, *audit.spoilt):
        path.unlink(missing_ok=True)
    with progress("Hashing", sum(file.size for file in in_store)) as advance:
        missing += [file for file in in_store if not sharing.stage(hub, delivery, file, advance)]
    total = sum({file.blob: file.size for file in missing}.values())
    with progress(revision.repo_id, total) as advance:
        resumed = fetch_all(source, missing, delivery, advance)
    remains = audit.remains()
    for name in remains:
        (delivery.snapshot(revision.commit) / name).unlink(missing_ok=True)
    delivery.finish(revision.commit, audit.wanted, audit.misplaced, revision.ref)
    for file in audit.missing:
        sharing.share(hub, delivery, file)
    fetched = {file.name for file in audit.missing}
    repaired = {*remains, *(file.name for file in audit.misplaced)} - fetched
    return Download(tuple(sorted(fetched)), tuple(sorted(repaired)), resumed)


def _check_space(repo_id: str, delivery: Delivery, missing: list[Wanted], damaged: list[Path]) -> None:
    """OperationError when the files do not fit on the disk; what is there already counts as room."""
    needed = {file.blob: file.size - _size(delivery.partial(file)) for file in missing}
    folder = next(folder for folder in (delivery.staging, *delivery.staging.parents) if folder.exists())
    gained = sum(_size(path) for path in damaged)
    alternative = "set HF_HUB_CACHE to another disk"
    space.check(repo_id, sum(needed.values()), folder, gained=gained, alternative=alternative)


def _size(path: Path) -> int:
    return os.lstat(path).st_size if os.path.lexists(path) else 0
