"""What the hub says of a repo, checked where it comes in: past this module every value has its type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from huggingface_hub import ModelInfo
from huggingface_hub.hf_api import RepoFile

from mlxk2.hub.client import Connection
from mlxk2.hub.limits import LimitExceeded, NonsenseError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_XET_HASH = re.compile(r"[0-9a-f]{64}")
# No disk holds more.
MAX_FILE_BYTES = 1 << 60


class Entry(NamedTuple):
    """A file of a repo; `blob` is its hash, or None where the hub does not say it."""

    path: str
    size: int
    blob: str | None
    xet_hash: str | None


def checked(info: ModelInfo) -> ModelInfo:
    """Return what the hub says of a repo; NonsenseError when its commit or its access are not what they should be."""
    if not is_commit(info.sha):
        raise NonsenseError("its commit is no hash")
    said = (info.private, info.disabled)
    if not all(isinstance(value, bool | None) for value in said) or not isinstance(info.gated, bool | str | None):
        raise NonsenseError("it does not say who may read it")
    return info


def is_commit(value: object) -> bool:
    """Whether this is the hash of a commit."""
    return isinstance(value, str) and _COMMIT.fullmatch(value) is not None


def entries(connection: Connection, repo_id: str, commit: str | None) -> Iterator[Entry]:
    """Yield the files of a commit; NonsenseError when one can't be a file, LimitExceeded when there are too many."""
    most = connection.limits.files
    listed = connection.api.list_repo_tree(repo_id, recursive=True, revision=commit)
    for number, entry in enumerate(islice(listed, most + 1)):
        if number == most:
            raise LimitExceeded(f"lists more than {most:,} files and folders")
        if isinstance(entry, RepoFile):
            yield _checked(entry)


def _checked(entry: RepoFile) -> Entry:
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
    return Entry(path, size, blob or None, xet_hash)
