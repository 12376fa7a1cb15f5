"""A revision of a repo into a cache: only what is missing or damaged is fetched, and the model changes in one step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from mlxk2.cache.audit import Audit, has_its_hash, looks_whole
from mlxk2.cache.delivery import Delivery, Wanted, read_ref, write_ref
from mlxk2.cache.locks import PULL_LOCK
from mlxk2.errors import OperationError
from mlxk2.hub import library, repos, sharing
from mlxk2.hub.connection import Connection
from mlxk2.hub.errors import translated
from mlxk2.hub.fetching import fetch_all
from mlxk2.hub.repos import Revision
from mlxk2.hub.transfer import Source
from mlxk2.sizes import human_size

NOTICE_SECONDS = 1.0

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
Notify = Callable[[str], object]


class Download(NamedTuple):
    """What came of a download.

    `fetched` and `repaired` are names of files, `resumed_bytes` were there from an earlier attempt. `left_out` counts
    the files of the revision that were neither there nor wanted.
    """

    commit: str
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
        wanted = files if complete else [file for file in files if delivery.has_entry(revision.commit, file)]
        done = Download(revision.commit, (), (), 0, left_out=len(files) - len(wanted))
        if not by_hash and _is_settled(delivery, revision, Audit(delivery, revision.commit, wanted, looks_whole)):
            return done  # without a lock, which could not be taken in a cache that may only be read
        with _alone(hub, revision.repo_id, notify):
            delivery = Delivery.of(hub, revision.repo_id)
            audit = _audit(delivery, revision, wanted, progress, by_hash)
            if not audit.is_sound:
                done = _deliver(source, hub, delivery, audit, progress, by_hash)._replace(left_out=done.left_out)
            write_ref(delivery.model, revision.ref, revision.commit)
            delivery.clear()
            sharing.remove_orphans(hub, delivery)
    return done


def _is_settled(delivery: Delivery, revision: Revision, audit: Audit) -> bool:
    """Whether nothing is left to do: no file, no branch, no remains of a download."""
    has_ref = revision.ref is None or read_ref(delivery.model, revision.ref) == revision.commit
    return audit.is_sound and has_ref and not delivery.has_remains()


@contextmanager
def _alone(hub: Path, repo_id: str, notify: Notify) -> Iterator[None]:
    """Hold the lock of a model's downloads; wait for another process that has it, and say so."""
    folder = hub / ".locks" / library.repo_folder_name(repo_id=repo_id, repo_type="model")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(library.WeakFileLock(folder / PULL_LOCK, timeout=NOTICE_SECONDS))
        except library.Timeout:
            notify(f"Another pull of {repo_id} is running; waiting for it.")
            held.enter_context(library.WeakFileLock(folder / PULL_LOCK))
        yield


def _audit(delivery: Delivery, revision: Revision, wanted: list[Wanted], progress: Progress, by_hash: bool) -> Audit:
    if not by_hash:
        return Audit(delivery, revision.commit, wanted, looks_whole)
    present = {file.blob: file.size for file in wanted if delivery.blob(file).exists()}
    with progress("Hashing", sum(present.values())) as advance:
        return Audit(delivery, revision.commit, wanted, has_its_hash(advance))


def _deliver(
    source: Source, hub: Path, delivery: Delivery, audit: Audit, progress: Progress, by_hash: bool
) -> Download:
    revision = source.revision
    damaged = audit.bad_blobs()
    trusted = [] if by_hash else [file for file in audit.missing if delivery.blob(file) not in damaged]
    in_store = [file for file in trusted if sharing.has(hub, file)]
    missing = [file for file in audit.missing if file not in in_store and not delivery.staged(file).exists()]
    _check_space(revision.repo_id, delivery, missing, damaged)
    delivery.begin()
    for path in damaged:
        path.unlink()
    for file in in_store:
        sharing.stage(hub, delivery, file)
    total = sum({file.blob: file.size for file in missing}.values())
    with progress(revision.repo_id, total) as advance:
        resumed = fetch_all(source, missing, delivery, advance)
    remains = audit.remains()
    for name in remains:
        (delivery.snapshot(revision.commit) / name).unlink()
    delivery.finish(revision.commit, audit.wanted, audit.misplaced, revision.ref)
    for file in audit.missing:
        sharing.share(hub, delivery, file, replace=by_hash or delivery.blob(file) in damaged)
    fetched = {file.name for file in audit.missing}
    repaired = {*remains, *(file.name for file in audit.misplaced)} - fetched
    return Download(revision.commit, tuple(sorted(fetched)), tuple(sorted(repaired)), resumed)


def _check_space(repo_id: str, delivery: Delivery, missing: list[Wanted], damaged: list[Path]) -> None:
    """OperationError when the files do not fit on the disk, with both numbers; what is there already counts as room."""
    sizes = {file.blob: file.size - _size(delivery.partial(file)) for file in missing}
    needed = sum(sizes.values())
    folder = next(folder for folder in (delivery.staging, *delivery.staging.parents) if folder.exists())
    available = shutil.disk_usage(folder).free + sum(_size(path) for path in damaged)
    if needed > available:
        raise OperationError(
            f"Not enough disk space for {repo_id}: {human_size(needed)} needed, {human_size(available)} available.",
            hint="Free some space, for instance with `mlxk2 rm`, or set HF_HUB_CACHE to another disk.",
        )


def _size(path: Path) -> int:
    return os.lstat(path).st_size if os.path.lexists(path) else 0
