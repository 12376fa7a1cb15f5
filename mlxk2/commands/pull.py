"""`pull`: a model from the hub into the cache; one that is there is updated, repaired, or left alone."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Literal, NamedTuple

from mlxk2.cache import naming
from mlxk2.cache.describe import describe
from mlxk2.cache.naming import short_hash
from mlxk2.cache.store import Cache, CachedModel, hub_folder
from mlxk2.errors import (
    AccessDeniedError,
    AmbiguousMatchError,
    DownloadFailedError,
    HashNotFoundError,
    HubError,
    MlxkError,
    NetworkError,
    ValidationError,
)
from mlxk2.hub import repos
from mlxk2.hub.connection import Connection, connect
from mlxk2.hub.download import Download, download
from mlxk2.hub.errors import RevisionMissingError
from mlxk2.hub.repos import Revision
from mlxk2.printable import listed
from mlxk2.sizes import human_size
from mlxk2.spec import PullData

Status = Literal["success", "already_exists", "access_denied", "failed", "error"]
# What may pass: until then, a model that is there is good enough.
_PASSING = (NetworkError, DownloadFailedError)


class Local(NamedTuple):
    """What the cache has of a model: its commit of the wanted revision, and what is wrong with its files."""

    repo_id: str
    commit: str | None
    problem: str | None

    @property
    def is_healthy(self) -> bool:
        """Whether it can be used as it is."""
        return self.commit is not None and self.problem is None


def run(args: Namespace) -> PullData:
    """Download what is missing or damaged of a model; what the hub or the disk refuses is raised."""
    name, revision = _argument(args.model)
    try:
        return _Pull(args, connect(), Cache(hub_folder(os.environ))).run(name, revision)
    except MlxkError as error:
        error.data = {**_data(args, _status(error), error.message)}
        raise


def _argument(argument: str) -> naming.ModelArgument:
    if argument == naming.DEMO:
        raise ValidationError("`demo` comes along, there is nothing to download. Try: mlxk2 run demo")
    if naming.is_path(argument):
        raise ValidationError(f"{argument!r} is a folder; `pull` takes the name of a model on the hub, as org/model.")
    return naming.parse(argument)


def _status(error: MlxkError) -> Status:
    if isinstance(error, AccessDeniedError):
        return "access_denied"
    return "failed" if isinstance(error, HubError) else "error"


class _Pull(NamedTuple):
    args: Namespace
    connection: Connection
    cache: Cache

    def run(self, name: str, revision: str | None) -> PullData:
        found = self._preflight(name, revision)
        if isinstance(found, Local):
            return self._stays(found)
        before = self._local(found.repo_id, found.ref or found.commit)
        is_current = before is not None and before.is_healthy and before.commit == found.commit
        if is_current and not self.args.force:
            return self._check(found, before)
        return self._fetch(found, before)

    def _preflight(self, name: str, revision: str | None) -> Revision | Local:
        """The revision on the hub; the healthy model that is there, where the hub does not answer."""
        try:
            return repos.find(self.connection, name, revision)
        except RevisionMissingError:
            raise
        except _PASSING as fault:
            local = next(filter(None, (self._local(repo_id, revision) for repo_id in naming.candidates(name))), None)
            self.args.streams.warn(fault.message)
            if local is not None and local.is_healthy and not self.args.force:
                return local
            # It may pass meanwhile, and if it does not, this says why.
            return repos.find(self.connection, name, revision)

    def _check(self, found: Revision, before: Local | None) -> PullData:
        """Put right what health can't see in a model that is healthy and current; mostly there is nothing."""
        try:
            done = self._download(found, complete=False)
        except _PASSING as fault:
            local = self._local(found.repo_id, found.commit)
            if local is None or not local.is_healthy:
                raise
            self.args.streams.warn(fault.message)
            return self._stays(local)
        if done.changed:
            return self._done("success", found, _told(found, before, done))
        rest = f" {done.left_out} further files are on the hub; --force fetches them." if done.left_out else ""
        return self._done("already_exists", found, f"{found.repo_id} is up to date ({short_hash(found.commit)}).{rest}")

    def _fetch(self, found: Revision, before: Local | None) -> PullData:
        done = self._download(found, complete=True)
        after = self._local(found.repo_id, found.commit)
        flaw = f" As it is on the hub it is not healthy: {after.problem}." if after and after.problem else ""
        if done.changed:
            return self._done("success", found, _told(found, before, done) + flaw)
        return self._done("already_exists", found, f"{found.repo_id} is complete ({short_hash(found.commit)}).{flaw}")

    def _download(self, found: Revision, complete: bool) -> Download:
        return download(
            self.connection,
            found,
            Path(self.cache.hub),
            self.args.progress,
            notify=self.args.streams.warn,
            by_hash=self.args.force,
            complete=complete,
        )

    def _local(self, repo_id: str, revision: str | None) -> Local | None:
        model = next((model for model in self.cache.scan() if model.name == repo_id), None)
        if model is None:
            return None
        commit = model.snapshot().commit if revision is None else _commit_of(model, revision)
        if commit is None:
            return Local(repo_id, None, None if model.revisions() else "it has no snapshot")
        verdict = describe(model.snapshot_at(commit))
        return Local(repo_id, commit, verdict["reason"] if verdict["health"] == "unhealthy" else None)

    def _stays(self, local: Local) -> PullData:
        commit = short_hash(local.commit or "")
        message = f"{local.repo_id} is in the cache and healthy ({commit}); the hub did not answer."
        return _data(self.args, "already_exists", message, local.repo_id, local.commit)

    def _done(self, status: Status, found: Revision, message: str) -> PullData:
        return _data(self.args, status, message, found.repo_id, found.commit)


def _data(
    args: Namespace, status: Status, message: str, name: str | None = None, commit: str | None = None
) -> PullData:
    return {
        "model": args.model,
        "download_status": status,
        "message": message,
        "expanded_name": name,
        "commit_hash": commit,
    }


def _commit_of(model: CachedModel, revision: str) -> str | None:
    try:
        return model.snapshot_at(revision).commit
    except (HashNotFoundError, AmbiguousMatchError):
        return None


def _told(found: Revision, before: Local | None, done: Download) -> str:
    """What a download did, in one or two sentences."""
    new = short_hash(found.commit)
    kept = f" {human_size(done.resumed_bytes)} were there from an earlier attempt." if done.resumed_bytes else ""
    if before is None or (before.commit is None and before.problem is None):
        return f"Downloaded {found.repo_id} ({new}).{kept}"
    if before.commit is not None and before.commit != found.commit:
        return f"Updated {found.repo_id} from {short_hash(before.commit)} to {new}: {_changes(done)}.{kept}"
    return f"Repaired {found.repo_id} ({new}): {_changes(done)}.{kept}"


def _changes(done: Download) -> str:
    parts = (("fetched", done.fetched), ("put right", done.repaired))
    return "; ".join(f"{verb} {listed(names)}" for verb, names in parts if names) or "no file had to be fetched"
