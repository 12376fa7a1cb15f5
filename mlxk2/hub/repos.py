"""The metadata of a repo on the hub: the commit that a revision means, and the files of a commit.

Every value is checked where it comes in, so that past this module each one has its type.
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
from mlxk2.hub.limits import LimitExceeded, NonsenseError

DEFAULT_REF = "main"
NO_HASH = "has no hash"
MAX_FILE_BYTES = 1 << 60  # More than any disk holds.

_COMMIT = re.compile(r"[0-9a-f]{40}")
_COMMIT_PREFIX = re.compile(r"[0-9a-f]{3,40}")
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_XET_HASH = re.compile(r"[0-9a-f]{64}")


class Revision(NamedTuple):
    """A commit of a repo on the hub; `ref` is the branch or tag that named it, if there is one."""

    repo_id: str
    commit: str
    ref: str | None


class Source(NamedTuple):
    """A revision on the hub, and the connection to it."""

    connection: Connection
    revision: Revision


class Entry(NamedTuple):
    """A file of a repo; `blob` is its hash, or None if the hub does not give it."""

    path: str
    size: int
    blob: str | None
    xet_hash: str | None


def find(connection: Connection, name: str, revision: str | None) -> Revision:
    """Return the revision on the hub that a model name means; the name must be complete.

    Raise AccessDeniedError if the user may read no such repo, DownloadFailedError if the repo lacks the revision,
    NetworkError if the hub can't be reached.
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
    """Return the revision of a repo that a branch, a tag, a hash or the beginning of a hash names."""
    try:
        with call_hub(repo_id, connection.limits):
            timeout = private.constants.HF_HUB_ETAG_TIMEOUT
            info = connection.api.model_info(repo_id, revision=revision, timeout=timeout)
            check_info(info)
            if info.gated:
                # Everybody may read the metadata of a gated repo; ask whether this user may read its files.
                connection.api.auth_check(repo_id)
    except RevisionMissingError:
        return _find_commit_by_prefix(connection, repo_id, revision or DEFAULT_REF)
    commit = str(info.sha)
    is_hash = revision is not None and commit.startswith(revision)
    return Revision(repo_id, commit, None if is_hash else revision or DEFAULT_REF)


def _find_commit_by_prefix(connection: Connection, repo_id: str, prefix: str) -> Revision:
    """Return the only revision of a repo whose hash begins like this; raise DownloadFailedError otherwise."""
    found = set()
    if _COMMIT_PREFIX.fullmatch(prefix):
        with call_hub(repo_id, connection.limits):
            for commit in connection.api.list_repo_commits(repo_id):
                if not is_commit(commit.commit_id):
                    raise NonsenseError(f"a commit is no hash: {commit.commit_id!r:.100}")
                if commit.commit_id.startswith(prefix):
                    found.add(commit.commit_id)
    if len(found) == 1:
        return Revision(repo_id, found.pop(), None)
    problem = f"has several commits that begin with {prefix!r}" if found else f"has no revision {prefix!r}"
    raise DownloadFailedError(f"{repo_id} {problem} on the hub.", hint="Name a branch, a tag, or more of the hash.")


def check_info(info: ModelInfo) -> None:
    """Raise NonsenseError when the commit or the access in the hub's description of a repo has the wrong type."""
    if not is_commit(info.sha):
        raise NonsenseError("its commit is no hash")
    flags = (info.private, info.disabled)
    if not all(isinstance(value, bool | None) for value in flags) or not isinstance(info.gated, bool | str | None):
        raise NonsenseError("it does not say who may read it")


def is_commit(value: object) -> bool:
    """Return whether this is the hash of a commit."""
    return isinstance(value, str) and _COMMIT.fullmatch(value) is not None


def list_files(connection: Connection, revision: Revision) -> list[RemoteFile]:
    """Return the files of a revision, whose names differ on every disk.

    Raise DownloadFailedError if there are none, or a path would lead out of the model's folder; NamesCollideError if a
    disk would take two names for one.
    """
    repo_id, files = revision.repo_id, []
    with call_hub(repo_id, connection.limits):
        for path, size, blob, xet_hash in list_entries(connection, repo_id, revision.commit):
            problem = names.problem_of_file(path)
            if problem or blob is None:
                shown = repr(cut(path, names.MAX_LENGTH))
                message = f"The hub lists a file of {repo_id} that can't be one: {shown} {problem or NO_HASH}."
                raise DownloadFailedError(message)
            files.append(RemoteFile(path, blob, size, xet_hash))
    if not files:
        raise DownloadFailedError(f"{repo_id} has no files on the hub ({names.short_hash(revision.commit)}).")
    if collision := next(names.collisions(file.name for file in files), None):
        raise NamesCollideError(repo_id, collision)
    return files


def list_entries(connection: Connection, repo_id: str, commit: str | None) -> Iterator[Entry]:
    """Yield the files of a commit; raise NonsenseError if one is not possible, LimitExceeded if there are too many."""
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
            raise NonsenseError(f"a file's path is no text: {path!r:.100}")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_FILE_BYTES:
            raise NonsenseError(f"{path!r} has no possible size: {size!r:.100}")
        if blob is not None and (not isinstance(blob, str) or (blob and not _BLOB.fullmatch(blob))):
            raise NonsenseError(f"{path!r} has an invalid hash: {blob!r:.100}")
        xet_hash = entry.xet_hash if entry.lfs else None
        if xet_hash is not None and (not isinstance(xet_hash, str) or not _XET_HASH.fullmatch(xet_hash)):
            raise NonsenseError(f"{path!r} has an invalid Xet hash: {xet_hash!r:.100}")
        yield Entry(path, size, blob or None, xet_hash)
