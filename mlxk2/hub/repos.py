"""What the hub says of a repo: which revision a name means, and which files are in it. Metadata only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from huggingface_hub.hf_api import RepoFile

from mlxk2.cache import naming
from mlxk2.cache.delivery import Wanted
from mlxk2.errors import AccessDeniedError, DownloadFailedError
from mlxk2.hub import library
from mlxk2.hub.connection import Connection
from mlxk2.hub.errors import NamesCollideError, RevisionMissingError, answered, nonsense
from mlxk2.printable import cut

DEFAULT_REF = "main"

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH_START = re.compile(r"[0-9a-f]{3,40}")
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


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
    for repo_id in naming.candidates(name):
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
    with answered(revision.repo_id):
        entries = connection.api.list_repo_tree(revision.repo_id, recursive=True, revision=revision.commit)
        found = [_wanted(revision.repo_id, entry) for entry in entries if isinstance(entry, RepoFile)]
    if not found:
        raise DownloadFailedError(f"{revision.repo_id} has no files on the hub ({naming.short_hash(revision.commit)}).")
    if collision := naming.find_collision(file.name for file in found):
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
    with answered(repo_id):
        info = connection.api.model_info(repo_id, revision=revision, timeout=library.constants.HF_HUB_ETAG_TIMEOUT)
        if info.gated:
            # Everybody may read of a gated repo; who may read its files, the hub says only when asked.
            connection.api.auth_check(repo_id)
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise DownloadFailedError(nonsense(repo_id))
    return info.sha


def _commit_that_begins(connection: Connection, repo_id: str, start: str) -> str:
    """The only commit of the repo whose hash begins like this."""
    found = set(_commits(connection, repo_id, start) if _HASH_START.fullmatch(start) else ())
    if len(found) == 1:
        return found.pop()
    problem = f"has several commits that begin with {start!r}" if found else f"has no revision {start!r}"
    raise DownloadFailedError(f"{repo_id} {problem} on the hub.", hint="Name a branch, a tag, or more of the hash.")


def _commits(connection: Connection, repo_id: str, start: str) -> Iterator[str]:
    with answered(repo_id):
        commits = connection.api.list_repo_commits(repo_id)
        yield from (commit.commit_id for commit in commits if commit.commit_id.startswith(start))


def _wanted(repo_id: str, entry: RepoFile) -> Wanted:
    blob, size = (entry.lfs.sha256, entry.lfs.size) if entry.lfs else (entry.blob_id, entry.size)
    problem = naming.problem_of_file(entry.path) or (None if _BLOB.fullmatch(blob) else "has no hash")
    if problem:
        shown = repr(cut(entry.path, naming.MAX_LENGTH))
        raise DownloadFailedError(f"The hub lists a file of {repo_id} that can't be one: {shown} {problem}.")
    return Wanted(entry.path, blob, size, entry.xet_hash if entry.lfs else None)
