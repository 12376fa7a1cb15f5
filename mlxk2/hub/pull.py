"""A model of the cache, brought to where the hub is: downloaded, updated, repaired, or left alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mlxk2.cache.store import Cache, CachedModel
from mlxk2.checkpoint.describe import look
from mlxk2.errors import AmbiguousMatchError, DownloadFailedError, HashNotFoundError, ModelNotFoundError, NetworkError
from mlxk2.formatting import human_size, listed
from mlxk2.hub import repos
from mlxk2.hub.client import Connection, connect
from mlxk2.hub.download import Download, Notify, download
from mlxk2.hub.errors import LimitsError, NamesCollideError, RevisionMissingError
from mlxk2.hub.repos import Revision
from mlxk2.names import candidates, short_hash

if TYPE_CHECKING:
    from mlxk2.formatting import Progress

# What may pass: until then, a model that is there is good enough.
_PASSING = (NetworkError, DownloadFailedError)


class Outcome(NamedTuple):
    """What was done, for people, with which model at which commit; `changed` is false when all was there already."""

    changed: bool
    message: str
    repo_id: str
    commit: str | None


class Local(NamedTuple):
    """What the cache has of a model: its commit of the wanted revision, and what is wrong with its files."""

    repo_id: str
    commit: str | None
    problem: str | None

    @property
    def is_healthy(self) -> bool:
        """Whether it can be used as it is."""
        return self.commit is not None and self.problem is None


def update(
    cache: Cache, name: str, revision: str | None, progress: Progress, *, notify: Notify, force: bool
) -> Outcome:
    """Bring what is missing or damaged of a model; by `force` every file that is there is checked by its hash.

    `name` and `revision` are those of a model argument. Raises errors of the tree.
    """
    return _Update(connect(), cache, progress, notify, force).run(name, revision)


class _Update(NamedTuple):
    connection: Connection
    cache: Cache
    progress: Progress
    notify: Notify
    force: bool

    def run(self, name: str, revision: str | None) -> Outcome:
        found = self._preflight(name, revision)
        if isinstance(found, Local):
            return _kept(found)
        before = self._local(found.repo_id, found.ref or found.commit)
        is_current = before is not None and before.is_healthy and before.commit == found.commit
        if is_current and not self.force:
            return self._check(found, before)
        return self._fetch(found, before)

    def _preflight(self, name: str, revision: str | None) -> Revision | Local:
        """The revision on the hub; the healthy model that is there, where the hub does not answer."""
        try:
            return repos.find(self.connection, name, revision)
        except RevisionMissingError:
            raise
        except _PASSING as fault:
            local = next(filter(None, (self._local(repo_id, revision) for repo_id in candidates(name))), None)
            self.notify(fault.message)
            if local is not None and local.is_healthy and not self.force:
                return local
            if isinstance(fault, LimitsError):
                raise
            # It may pass meanwhile, and if it does not, this says why.
            return repos.find(self.connection, name, revision)

    def _check(self, found: Revision, before: Local | None) -> Outcome:
        """Put right what health can't see in a model that is healthy and current; mostly there is nothing."""
        try:
            done = self._download(found, complete=False)
        except NamesCollideError:
            raise
        except _PASSING as fault:
            local = self._local(found.repo_id, found.commit)
            if local is None or not local.is_healthy:
                raise
            self.notify(fault.message)
            return _kept(local)
        rest = f" {done.left_out} further files are on the hub; --force fetches them." if done.left_out else ""
        current = f"{found.repo_id} is up to date ({short_hash(found.commit)}).{rest}"
        message = _told(found, before, done) if done.changed else current
        return Outcome(done.changed, message, found.repo_id, found.commit)

    def _fetch(self, found: Revision, before: Local | None) -> Outcome:
        done = self._download(found, complete=True)
        after = self._local(found.repo_id, found.commit)
        flaw = f" As it is on the hub it is not healthy: {after.problem}." if after and after.problem else ""
        complete = f"{found.repo_id} is complete ({short_hash(found.commit)})."
        # A branch may have moved to a revision that was there: then no file changes, but the model does.
        changed = done.changed or _replaced(found, before) is not None
        message = (_told(found, before, done) if changed else complete) + flaw
        return Outcome(changed, message, found.repo_id, found.commit)

    def _download(self, found: Revision, complete: bool) -> Download:
        hub = Path(self.cache.path)
        return download(
            self.connection, found, hub, self.progress, notify=self.notify, by_hash=self.force, complete=complete
        )

    def _local(self, repo_id: str, revision: str | None) -> Local | None:
        try:
            return self._verdict(repo_id, revision)
        except ModelNotFoundError:
            return None  # it was removed since the cache was scanned

    def _verdict(self, repo_id: str, revision: str | None) -> Local | None:
        model = next((model for model in self.cache.scan() if model.name == repo_id), None)
        if model is None:
            return None
        commit = model.snapshot().commit if revision is None else _commit_of(model, revision)
        if commit is None:
            return Local(repo_id, None, None if model.revisions() else "it has no snapshot")
        _, verdict = look(lambda: model.snapshot_at(commit))
        return Local(repo_id, commit, verdict["reason"] if verdict["health"] == "unhealthy" else None)


def _commit_of(model: CachedModel, revision: str) -> str | None:
    try:
        return model.snapshot_at(revision).commit
    except (HashNotFoundError, AmbiguousMatchError):
        return None


def _kept(local: Local) -> Outcome:
    commit = short_hash(local.commit or "")
    message = f"{local.repo_id} is in the cache and healthy ({commit}); the hub did not answer."
    return Outcome(False, message, local.repo_id, local.commit)


def _replaced(found: Revision, before: Local | None) -> str | None:
    """The commit that the model was at before, if that was another one."""
    return before.commit if before is not None and before.commit != found.commit else None


def _told(found: Revision, before: Local | None, done: Download) -> str:
    """What a download did, in one or two sentences."""
    new = short_hash(found.commit)
    kept = f" {human_size(done.resumed_bytes)} were there from an earlier attempt." if done.resumed_bytes else ""
    if before is None or (before.commit is None and before.problem is None):
        return f"Downloaded {found.repo_id} ({new}).{kept}"
    if replaced := _replaced(found, before):
        return f"Updated {found.repo_id} from {short_hash(replaced)} to {new}: {_changes(done)}.{kept}"
    return f"Repaired {found.repo_id} ({new}): {_changes(done)}.{kept}"


def _changes(done: Download) -> str:
    parts = (("fetched", done.fetched), ("put right", done.repaired))
    return "; ".join(f"{verb} {listed(names)}" for verb, names in parts if names) or "no file had to be fetched"
