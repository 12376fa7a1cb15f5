"""A pull: a model of the cache is brought to where the hub is; downloaded, updated, repaired, or left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mlxk2.cache import locks
from mlxk2.cache.audit import has_its_hash, looks_whole, plan_pull
from mlxk2.cache.staging import Staging
from mlxk2.cache.store import Cache
from mlxk2.checkpoint.describe import look
from mlxk2.errors import AmbiguousMatchError, DownloadFailedError, HashNotFoundError, ModelNotFoundError, NetworkError
from mlxk2.formatting import human_size, join_names
from mlxk2.hub import private, repos, transfer
from mlxk2.hub.client import Connection
from mlxk2.hub.errors import LimitsError, NamesCollideError, RevisionMissingError, translate_download
from mlxk2.hub.repos import Revision, Source
from mlxk2.hub.shared_blobs import SharedBlobs
from mlxk2.names import candidates, folder_of, short_hash

if TYPE_CHECKING:
    from mlxk2.formatting import Progress

NOTICE_SECONDS = 1.0  # A pull that waits longer for another one says so.

Notify = Callable[[str], object]

# After these errors a model that is in the cache and healthy is good enough.
_PASSING = (NetworkError, DownloadFailedError)


class PullResult(NamedTuple):
    """A model at a commit, and a message for people about what was done; `changed` is false if nothing was."""

    changed: bool
    message: str
    repo_id: str
    commit: str | None


class DownloadResult(NamedTuple):
    """The names of the files that a download has fetched or repaired.

    `resumed_bytes` were there from an earlier attempt. `left_out` counts the files of the revision that were neither
    there nor required.
    """

    fetched: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    resumed_bytes: int = 0
    left_out: int = 0

    @property
    def changed(self) -> bool:
        """Whether the cache has changed."""
        return bool(self.fetched or self.repaired)


class LocalModel(NamedTuple):
    """What the cache has of a model: its commit of a revision, and what is wrong with its files."""

    repo_id: str
    commit: str | None
    problem: str | None

    @property
    def is_healthy(self) -> bool:
        """Whether it can be used as it is."""
        return self.commit is not None and self.problem is None


def pull(
    connection: Connection,
    cache: Cache,
    name: str,
    revision: str | None,
    progress: Progress,
    *,
    notify: Notify,
    force: bool,
) -> PullResult:
    """Bring what is missing or damaged of a model; with `force`, check every file that is there by its hash.

    `name` and `revision` are those of a model argument. Raise errors of the tree.
    """
    return _Pull(connection, cache, progress, notify, force).run(name, revision)


class _Pull(NamedTuple):
    connection: Connection
    cache: Cache
    progress: Progress
    notify: Notify
    force: bool

    def run(self, name: str, revision: str | None) -> PullResult:
        found = self._find(name, revision)
        if isinstance(found, LocalModel):
            return _unchanged(found)
        before = self._find_local(found.repo_id, found.ref or found.commit)
        is_current = before is not None and before.is_healthy and before.commit == found.commit
        if is_current and not self.force:
            return self._repair(found, before)
        result = self._download(found, complete=True)
        after = self._find_local(found.repo_id, found.commit)
        # A branch may have moved to a revision that was there: then no file changes, but the model does.
        changed = result.changed or _replaced_commit(found, before) is not None
        message = f"{found.repo_id} is complete ({short_hash(found.commit)})."
        if changed:
            message = _describe(found, before, result)
        if after is not None and after.problem:
            message += f" As it is on the hub it is not healthy: {after.problem}."
        return PullResult(changed, message, found.repo_id, found.commit)

    def _find(self, name: str, revision: str | None) -> Revision | LocalModel:
        """Return the revision on the hub; if the hub does not respond, the healthy model in the cache."""
        try:
            return repos.find(self.connection, name, revision)
        except RevisionMissingError:
            raise
        except _PASSING as error:
            local = next(filter(None, (self._find_local(repo_id, revision) for repo_id in candidates(name))), None)
            if local is not None and local.is_healthy and not self.force:
                self.notify(error.message)
                return local
            if isinstance(error, LimitsError):
                raise
            # The error may have passed; if not, the second attempt raises it, and no warning repeats its words.
            found = repos.find(self.connection, name, revision)
            self.notify(error.message)
            return found

    def _repair(self, found: Revision, before: LocalModel | None) -> PullResult:
        """Repair what health can't see in a model that is healthy and current; usually there is nothing to do."""
        try:
            result = self._download(found, complete=False)
        except NamesCollideError:
            raise
        except _PASSING as error:
            local = self._find_local(found.repo_id, found.commit)
            if local is None or not local.is_healthy:
                raise
            self.notify(error.message)
            return _unchanged(local)
        message = f"{found.repo_id} is up to date ({short_hash(found.commit)})."
        if result.changed:
            message = _describe(found, before, result)
        elif result.left_out:
            message += f" {result.left_out} further files are on the hub; --force fetches them."
        return PullResult(result.changed, message, found.repo_id, found.commit)

    def _download(self, found: Revision, *, complete: bool) -> DownloadResult:
        return download(
            Source(self.connection, found),
            Path(self.cache.path),
            self.progress,
            notify=self.notify,
            by_hash=self.force,
            complete=complete,
        )

    def _find_local(self, repo_id: str, revision: str | None) -> LocalModel | None:
        """Return what the cache has of a model, or None; it may be removed at any time."""
        try:
            model = next((model for model in self.cache.scan() if model.name == repo_id), None)
            if model is None:
                return None
            try:
                commit = model.snapshot().commit if revision is None else model.snapshot_at(revision).commit
            except (HashNotFoundError, AmbiguousMatchError):
                commit = None
            if commit is None:
                return LocalModel(repo_id, None, None if model.revisions() else "it has no snapshot")
            _, info = look(lambda: model.snapshot_at(commit))
        except ModelNotFoundError:
            return None
        return LocalModel(repo_id, commit, info.problem)


def download(
    source: Source, cache_dir: Path, progress: Progress, *, notify: Notify, by_hash: bool = False, complete: bool = True
) -> DownloadResult:
    """Bring a revision into a cache, complete and verified, and let its branch name it.

    Files that are there are checked quickly, or all `by_hash`; unless it must be `complete`, no others are required.
    Raise errors of the tree. Until the last file is there, a model that was in the cache stays at its old revision,
    and a new one stays out of it.
    """
    repo_id, commit, ref = source.revision
    files = repos.list_files(source.connection, source.revision)
    with translate_download(repo_id):
        staging = Staging.of(cache_dir, repo_id)
        staging.check_names(ref)
        required = files if complete else [file for file in files if staging.has_entry(commit, file)]
        is_complete = not by_hash and plan_pull(staging, commit, required, looks_whole).is_empty
        # A pull that has nothing to do takes no lock, so that it also works in a cache that is read-only.
        if is_complete and staging.is_settled(ref, commit):
            return DownloadResult(left_out=len(files) - len(required))
        with _hold_pull_lock(cache_dir, repo_id, notify):
            staging = Staging.of(cache_dir, repo_id)
            staging.check_names(ref)
            staging.secure()
            if not staging.snapshot(commit).is_dir():
                required = files  # The revision was removed during the wait.
            if by_hash:
                with progress("Hashing", staging.present_bytes(required)) as advance:
                    plan = plan_pull(staging, commit, required, has_its_hash(advance))
            else:
                plan = plan_pull(staging, commit, required, looks_whole)
            resumed_bytes = transfer.fetch(source, plan, staging, progress, may_share=not by_hash)
            staging.move_in(plan, ref)
            SharedBlobs(str(cache_dir)).settle(staging, plan)
    fetched = {file.name for file in plan.missing}
    repaired = {*plan.leftovers, *(file.name for file in plan.misplaced)} - fetched
    return DownloadResult(tuple(sorted(fetched)), tuple(sorted(repaired)), resumed_bytes, len(files) - len(required))


@contextmanager
def _hold_pull_lock(cache_dir: Path, repo_id: str, notify: Notify) -> Iterator[None]:
    """Hold the lock of a model's pulls inside the block; wait for another process that has it, and say so."""
    lock = cache_dir / locks.FOLDER / folder_of(repo_id) / locks.PULL_LOCK
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
            # On a disk without locks, a file that stays would count as held for a day.
            held.callback(lock.unlink, missing_ok=True)
        yield


def _unchanged(local: LocalModel) -> PullResult:
    commit = short_hash(local.commit or "")
    message = f"{local.repo_id} is in the cache and healthy ({commit}); the hub did not answer."
    return PullResult(False, message, local.repo_id, local.commit)


def _replaced_commit(found: Revision, before: LocalModel | None) -> str | None:
    """Return the commit that the model was at before, if that was another one."""
    return before.commit if before is not None and before.commit != found.commit else None


def _describe(found: Revision, before: LocalModel | None, result: DownloadResult) -> str:
    """Return what a download did, in one or two sentences."""
    new, resumed = short_hash(found.commit), ""
    if result.resumed_bytes:
        resumed = f" {human_size(result.resumed_bytes)} were there from an earlier attempt."
    if before is None or (before.commit is None and before.problem is None):
        return f"Downloaded {found.repo_id} ({new}).{resumed}"
    parts = (("fetched", result.fetched), ("put right", result.repaired))
    changes = "; ".join(f"{verb} {join_names(names)}" for verb, names in parts if names) or "no file had to be fetched"
    if replaced := _replaced_commit(found, before):
        return f"Updated {found.repo_id} from {short_hash(replaced)} to {new}: {changes}.{resumed}"
    return f"Repaired {found.repo_id} ({new}): {changes}.{resumed}"
