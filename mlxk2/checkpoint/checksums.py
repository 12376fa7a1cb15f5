"""Compare the content of a model's files with their checksums, which are the names of their blobs in the cache."""

from __future__ import annotations

import fcntl
import hashlib
import re
import sys
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

from mlxk2.checkpoint.files import BrokenFile, File, open_file
from mlxk2.checkpoint.snapshot import Snapshot

if TYPE_CHECKING:
    from mlxk2.formatting import Advance

CHUNK_BYTES = 1 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")


class Findings(NamedTuple):
    """The result of a check of all bytes: the names of corrupt files, and messages about unreadable files."""

    corrupt: tuple[str, ...]
    unreadable: tuple[str, ...]


def examine(snapshot: Snapshot, advance: Advance) -> Findings:
    """Compare the bytes of all files with the hashes that name their blobs.

    The cache names large files by SHA-256, and small ones by git's blob SHA-1 (of `blob <size>\\0` and the bytes). Call
    `advance` with the number of bytes that were read. Skip files whose blob is not named by a hash.
    """
    corrupt, unreadable = [], []
    for file in hashed_files(snapshot):
        try:
            if digest(file, advance) != file.blob:
                corrupt.append(file.name)
        except BrokenFile as error:
            unreadable.append(str(error))
    return Findings(tuple(corrupt), tuple(unreadable))


def hashed_files(snapshot: Snapshot) -> list[File]:
    """Return the files whose blobs are named by the hash of their content."""
    with_blob = [file for file in snapshot.files if file.blob is not None and not file.problem]
    return [file for file in with_blob if is_sha256(file.blob) or _GIT_SHA1.fullmatch(file.blob or "")]


def digest(file: File, advance: Advance) -> str:
    """Return the hash of a file's bytes, with the same algorithm as the name of its blob."""
    with open_file(file) as current:
        if sys.platform == "darwin":
            # These bytes are read only once: keep them from replacing others in the system's file cache.
            fcntl.fcntl(current.descriptor, fcntl.F_NOCACHE, 1)
        hashed = new_hash(file.blob, current.file.size)
        for offset in range(0, current.file.size, CHUNK_BYTES):
            chunk = current.read(CHUNK_BYTES, offset)
            hashed.update(chunk)
            advance(len(chunk))
    return hashed.hexdigest()


def new_hash(blob: str | None, size: int) -> hashlib._Hash:
    """Return a new hash object with the algorithm of this blob's name; the blob has `size` bytes."""
    if is_sha256(blob):
        return hashlib.sha256()
    return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)


def is_sha256(blob: str | None) -> TypeGuard[str]:
    """Return whether a blob's name is a SHA-256 hash, as for large files."""
    return blob is not None and _SHA256.fullmatch(blob) is not None
