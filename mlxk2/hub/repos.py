"""What the hub says of a repo: which revision a name means, and which files are in it. Metadata only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from mlxk2 import names
from mlxk2.cache.staging import Wanted
from mlxk2.errors import AccessDeniedError, DownloadFailedError
from mlxk2.formatting import cut
from mlxk2.hub import listing, private
from mlxk2.hub.client import Connection
from mlxk2.hub.errors import NamesCollideError, RevisionMissingError, answered
from mlxk2.hub.limits import NonsenseError
from mlxk2.hub.listing import Entry

DEFAULT_REF = "main"
NO_HASH = "has no hash"

_HASH_START = re.compile(r"[0-9a-f]{3,40}")


class Revision(NamedTuple):
    """A commit of a repo on the hub; `ref` is the branch or tag that named it, if one did."""

    repo_id: str
    commit: str
    ref: str | None


def find(connection: Connection, name: str, revision: str | None) -> Revision:
    """The revision that a model name, never a part of one, means on the hub.

    AccessDeniedError when no such repo is open to the user, DownloadFailedError when the revision is not in it,
    NetworkError when the hub can't be reached.
    """
    denied = None
    for repo_id in names.candidates(name):
        try:
            return _revision(connection, repo_id, revision)
        except AccessDeniedError as error:
            denied = denied or error
    assert denied is not None
    raise denied


def files(connection: Connection, revision: Revision) -> list[Wanted]:
    """The files of a revision, of which no two have one name on any disk.

    DownloadFailedError when there are none, or one would lead out of the model's folder; NamesCollideError when two
    have one name.
    """
    with answered(revision.repo_id, connection.limits):
        entries = listing.entries(connection, revision.repo_id, revision.commit)
        found = [_wanted(revision.repo_id, entry) for entry in entries]
    if not found:
        raise DownloadFailedError(f"{revision.repo_id} has no files on the hub ({names.short_hash(revision.commit)}).")
    if collision := next(names.collisions(file.name for file in found), None):
        raise NamesCollideError(revision.repo_id, collision)
    return found


def _revision(connection: Connection, repo_id: str, revision: str | None) -> Revision:
    try:
        commit = _commit(connection, repo_id, revision)
    except RevisionMissingError:
        commit = _commit_that_begins(connection, repo_id, revision or DEFAULT_REF)
        return Revision(repo_id, commit, None)
    names_itself = revision is not None and commit.startswith(revision)
    return Revision(repo_id, commit, None if names_itself else revision or DEFAULT_REF)


def _commit(connection: Connection, repo_id: str, revision: str | None) -> str:
    with answered(repo_id, connection.limits):
        timeout = private.constants.HF_HUB_ETAG_TIMEOUT
        info = listing.checked(connection.api.model_info(repo_id, revision=revision, timeout=timeout))
        if info.gated:
            # Everybody may read of a gated repo; who may read its files, the hub says only when asked.
            connection.api.auth_check(repo_id)
    return str(info.sha)


def _commit_that_begins(connection: Connection, repo_id: str, start: str) -> str:
    """The only commit of the repo whose hash begins like this."""
    found = set(_commits(connection, repo_id, start) if _HASH_START.fullmatch(start) else ())
    if len(found) == 1:
        return found.pop()
    problem = f"has several commits that begin with {start!r}" if found else f"has no revision {start!r}"
    raise DownloadFailedError(f"{repo_id} {problem} on the hub.", hint="Name a branch, a tag, or more of the hash.")


def _commits(connection: Connection, repo_id: str, start: str) -> Iterator[str]:
    with answered(repo_id, connection.limits):
        for commit in connection.api.list_repo_commits(repo_id):
            if not listing.is_commit(commit.commit_id):
                raise NonsenseError(f"a commit is no hash: {commit.commit_id!r:.100}")
            if commit.commit_id.startswith(start):
                yield commit.commit_id


def _wanted(repo_id: str, entry: Entry) -> Wanted:
    problem = names.problem_of_file(entry.path)
    if problem or entry.blob is None:
        shown = repr(cut(entry.path, names.MAX_LENGTH))
        raise DownloadFailedError(f"The hub lists a file of {repo_id} that can't be one: {shown} {problem or NO_HASH}.")
    return Wanted(entry.path, entry.blob, entry.size, entry.xet_hash)
