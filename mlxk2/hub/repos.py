"""The metadata of a repo on the hub: the commit of a revision, and the files of a commit.

This module checks the type of every value that the hub sends, so that other modules can rely on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from huggingface_hub import ModelInfo
from huggingface_hub.hf_api import RepoFile

from mlxk2 import names
from mlxk2.cache.staging import RemoteFile
from mlxk2.errors import AccessDeniedError, DownloadFailedError
from mlxk2.formatting import cut
from mlxk2.hub import private
from mlxk2.hub.client import Connection
from mlxk2.hub.errors import NamesCollideError, RevisionMissingError, call_hub
from mlxk2.hub.limits import InvalidResponseError, LimitExceeded

DEFAULT_REF = "main"
NO_HASH = "has no hash"
MAX_FILE_BYTES = 1 << 60  # More than any disk holds.

_COMMIT = re.compile(r"[0-9a-f]{40}")
_COMMIT_PREFIX = re.compile(r"[0-9a-f]{3,40}")
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_XET_HASH = re.compile(r"[0-9a-f]{64}")


class Revision(NamedTuple):
    """A commit of a repo on the hub; `ref` is the branch or tag that the user asked for, or None."""

    repo_id: str
    commit: str
    ref: str | None


class Source(NamedTuple):
    """A revision on the hub, and the connection to it."""

    connection: Connection
    revision: Revision


class Entry(NamedTuple):
    """A file of a repo; `blob` is its hash, or None if the hub does not send it."""

    path: str
    size: int
    blob: str | None
    xet_hash: str | None


def find(connection: Connection, name: str, revision: str | None) -> Revision:
    """Return the revision on the hub for a model name; the name must be complete.

    Raise AccessDeniedError if the repo is missing or the user may not read it, DownloadFailedError if the repo lacks
    the revision, and NetworkError if the hub can't be reached.
    """
    denied = None
    for repo_id in names.candidates(name):
        try:
            return _find_revision(connection, repo_id, revision)
        except AccessDeniedError as error:
            denied = denied or error
    assert denied is not None
    raise denied


def _find_revision(connection: Connection, repo_id: str, revision: str | None) -> Revision:
    """Return the revision of a repo for a branch, a tag, a hash, or the beginning of a hash."""
    try:
        with call_hub(repo_id, connection.limits):
            timeout = private.constants.HF_HUB_ETAG_TIMEOUT
            info = connection.api.model_info(repo_id, revision=revision, timeout=timeout)
            check_info(info)
            if info.gated:
                # Every user may read the metadata of a gated repo; ask whether this one may read its files.
                connection.api.auth_check(repo_id)
    except RevisionMissingError:
        return _find_commit_by_prefix(connection, repo_id, revision or DEFAULT_REF)
    commit = str(info.sha)
    is_hash = revision is not None and commit.startswith(revision)
    return Revision(repo_id, commit, None if is_hash else revision or DEFAULT_REF)


def _find_commit_by_prefix(connection: Connection, repo_id: str, prefix: str) -> Revision:
    """Return the only revision of a repo whose hash has this prefix; raise DownloadFailedError otherwise."""
    found = set()
    if _COMMIT_PREFIX.fullmatch(prefix):
        with call_hub(repo_id, connection.limits):
            for commit in connection.api.list_repo_commits(repo_id):
                if not is_commit(commit.commit_id):
                    raise InvalidResponseError(f"a commit is not a hash: {commit.commit_id!r:.100}")
                if commit.commit_id.startswith(prefix):
                    found.add(commit.commit_id)
    if len(found) == 1:
        return Revision(repo_id, found.pop(), None)
    problem = f"has several commits that begin with {prefix!r}" if found else f"has no revision {prefix!r}"
    raise DownloadFailedError(f"{repo_id} {problem} on the hub.", hint="Name a branch, a tag, or more of the hash.")


def check_info(info: ModelInfo) -> None:
    """Raise InvalidResponseError when the hub's description of a repo has a wrong type for its commit or its access."""
    if not is_commit(info.sha):
        raise InvalidResponseError("its commit is not a hash")
    flags = (info.private, info.disabled)
    if not all(isinstance(value, bool | None) for value in flags) or not isinstance(info.gated, bool | str | None):
        raise InvalidResponseError("it does not say who may read it")


def is_commit(value: object) -> bool:
    """Return whether a value is the hash of a commit."""
    return isinstance(value, str) and _COMMIT.fullmatch(value) is not None


def list_files(connection: Connection, revision: Revision) -> list[RemoteFile]:
    """Return the files of a revision; their names are different on every kind of disk.

    Raise DownloadFailedError if the revision has no files or an invalid path. Raise NamesCollideError if two names are
    the same on some disks.
    """
    repo_id, files = revision.repo_id, []
    with call_hub(repo_id, connection.limits):
        for path, size, blob, xet_hash in list_entries(connection, repo_id, revision.commit):
            problem = names.problem_of_file(path)
            if problem or blob is None:
                shown = repr(cut(path, names.MAX_LENGTH))
                message = f"The hub lists an invalid file of {repo_id}: {shown} {problem or NO_HASH}."
                raise DownloadFailedError(message)
            files.append(RemoteFile(path, blob, size, xet_hash))
    if not files:
        raise DownloadFailedError(f"{repo_id} has no files on the hub ({names.short_hash(revision.commit)}).")
    if collision := next(names.collisions(file.name for file in files), None):
        raise NamesCollideError(repo_id, collision)
    return files


def list_entries(connection: Connection, repo_id: str, commit: str | None) -> Iterator[Entry]:
    """Yield the files of a commit; raise InvalidResponseError for invalid values, LimitExceeded for too many files."""
    max_files = connection.limits.files
    listed = connection.api.list_repo_tree(repo_id, recursive=True, revision=commit)
    for number, entry in enumerate(islice(listed, max_files + 1)):
        if number == max_files:
            raise LimitExceeded(f"lists more than {max_files:,} files and folders")
        if not isinstance(entry, RepoFile):
            continue
        path = entry.path
        blob, size = (entry.lfs.sha256, entry.lfs.size) if entry.lfs else (entry.blob_id, entry.size)
        if not isinstance(path, str):
            raise InvalidResponseError(f"a file's path is not text: {path!r:.100}")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_FILE_BYTES:
            raise InvalidResponseError(f"{path!r} has an invalid size: {size!r:.100}")
        if blob is not None and (not isinstance(blob, str) or (blob and not _BLOB.fullmatch(blob))):
            raise InvalidResponseError(f"{path!r} has an invalid hash: {blob!r:.100}")
        xet_hash = entry.xet_hash if entry.lfs else None
        if xet_hash is not None and (not isinstance(xet_hash, str) or not _XET_HASH.fullmatch(xet_hash)):
            raise InvalidResponseError(f"{path!r} has an invalid Xet hash: {xet_hash!r:.100}")
        yield Entry(path, size, blob or None, xet_hash)
