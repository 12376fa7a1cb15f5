"""Pull a model: make the cache equal to the hub by a download, an update or a repair, or change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mlxk2.cache import locks
from mlxk2.cache.audit import hash_check, looks_whole, plan_pull
from mlxk2.cache.staging import Staging
from mlxk2.cache.store import Cache
from mlxk2.checkpoint.describe import find_and_describe
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

NOTICE_SECONDS = 1.0  # A pull that waits longer for another pull informs the user.

Notify = Callable[[str], object]

# After these errors, a pull accepts a healthy model in the cache.
_TEMPORARY = (NetworkError, DownloadFailedError)


class PullResult(NamedTuple):
    """The model and commit of a pull, whether the pull changed anything, and a message about it for people."""

    changed: bool
    message: str
    repo_id: str
    commit: str | None


class DownloadResult(NamedTuple):
    """The names of the files that a download fetched or repaired.

    `resumed_bytes` are the bytes that an earlier attempt had fetched. `left_out` is the number of files on the hub that
    are neither in the cache nor required.
    """

    fetched: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    resumed_bytes: int = 0
    left_out: int = 0

    @property
    def changed(self) -> bool:
        """Whether the download changed the cache."""
        return bool(self.fetched or self.repaired)


class LocalModel(NamedTuple):
    """A model in the cache: its commit of the revision, and the problem of its files, each None if there is none."""

    repo_id: str
    commit: str | None
    problem: str | None

    @property
    def is_healthy(self) -> bool:
        """Whether the cache has the revision and its files have no problem."""
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
    """Fetch the missing and damaged files of a model; with `force`, check every existing file by its hash.

    `name` and `revision` are the parts of a model argument. Raise MlxkError.
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
            return _describe_unchanged(found)
        before = self._find_local(found.repo_id, found.ref or found.commit)
        is_current = before is not None and before.is_healthy and before.commit == found.commit
        if is_current and not self.force:
            return self._repair(found, before)
        result = self._download(found, complete=True)
        after = self._find_local(found.repo_id, found.commit)
        # A branch can move to a revision that is already in the cache: then no file changes, but the model does.
        changed = result.changed or _replaced_commit(found, before) is not None
        message = f"{found.repo_id} is complete ({short_hash(found.commit)})."
        if changed:
            message = _describe(found, before, result)
        if after is not None and after.problem:
            message += f" The model on the hub is not healthy: {after.problem}."
        return PullResult(changed, message, found.repo_id, found.commit)

    def _find(self, name: str, revision: str | None) -> Revision | LocalModel:
        """Return the revision on the hub; if the hub does not respond, return a healthy model in the cache."""
        try:
            return repos.find(self.connection, name, revision)
        except RevisionMissingError:
            raise
        except _TEMPORARY as error:
            local = next(filter(None, (self._find_local(repo_id, revision) for repo_id in candidates(name))), None)
            if local is not None and local.is_healthy and not self.force:
                self.notify(error.message)
                return local
            if isinstance(error, LimitsError):
                raise
            # The error can be over; if not, the second attempt raises it, and no warning repeats its text.
            found = repos.find(self.connection, name, revision)
            self.notify(error.message)
            return found

    def _repair(self, found: Revision, before: LocalModel | None) -> PullResult:
        """Repair damage in a healthy and current model that the rules of health don't find; usually there is none."""
        try:
            result = self._download(found, complete=False)
        except NamesCollideError:
            raise
        except _TEMPORARY as error:
            local = self._find_local(found.repo_id, found.commit)
            if local is None or not local.is_healthy:
                raise
            self.notify(error.message)
            return _describe_unchanged(local)
        message = f"{found.repo_id} is up to date ({short_hash(found.commit)})."
        if result.changed:
            message = _describe(found, before, result)
        elif result.left_out:
            message += f" Further files on the hub: {result.left_out}; --force fetches them."
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
        """Return the model in the cache, or None; another process can remove the model at any time."""
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
            _, info = find_and_describe(lambda: model.snapshot_at(commit))
        except ModelNotFoundError:
            return None
        return LocalModel(repo_id, commit, info.problem)


def download(
    source: Source, cache_dir: Path, progress: Progress, *, notify: Notify, by_hash: bool = False, complete: bool = True
) -> DownloadResult:
    """Fetch and verify a revision, move it into the cache, and write its commit to the branch.

    Check existing files quickly, or all of them `by_hash`. If `complete` is false, require only the files that the
    cache already has. Raise MlxkError. Before the last file is fetched, an existing model stays at its old revision and
    a new model is not visible.
    """
    repo_id, commit, ref = source.revision
    files = repos.list_files(source.connection, source.revision)
    with translate_download(repo_id):
        staging = Staging.of(cache_dir, repo_id)
        staging.check_names(ref)
        required = files if complete else [file for file in files if staging.has_entry(commit, file)]
        is_complete = not by_hash and plan_pull(staging, commit, required, looks_whole).is_empty
        # A pull that has nothing to do takes no lock, so it works in a read-only cache too.
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
                    plan = plan_pull(staging, commit, required, hash_check(advance))
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
    """Hold the lock of a model's pulls inside the block; if another process has it, inform the user and wait."""
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
            # On a disk without locks, a lock file counts as held for a day, so remove it.
            held.callback(lock.unlink, missing_ok=True)
        yield


def _describe_unchanged(local: LocalModel) -> PullResult:
    commit = short_hash(local.commit or "")
    message = f"{local.repo_id} is in the cache and healthy ({commit}); the hub did not respond."
    return PullResult(False, message, local.repo_id, local.commit)


def _replaced_commit(found: Revision, before: LocalModel | None) -> str | None:
    """Return the commit of the model before the pull, if it was a different one, or None."""
    return before.commit if before is not None and before.commit != found.commit else None


def _describe(found: Revision, before: LocalModel | None, result: DownloadResult) -> str:
    """Describe a download in one or two sentences."""
    new, resumed = short_hash(found.commit), ""
    if result.resumed_bytes:
        resumed = f" {human_size(result.resumed_bytes)} came from an earlier attempt."
    if before is None or (before.commit is None and before.problem is None):
        return f"Downloaded {found.repo_id} ({new}).{resumed}"
    parts = (("fetched", result.fetched), ("repaired", result.repaired))
    changes = "; ".join(f"{verb} {join_names(names)}" for verb, names in parts if names) or "no file had to be fetched"
    if replaced := _replaced_commit(found, before):
        return f"Updated {found.repo_id} from {short_hash(replaced)} to {new}: {changes}.{resumed}"
    return f"Repaired {found.repo_id} ({new}): {changes}.{resumed}"
