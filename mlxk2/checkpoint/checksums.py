"""The checksums of a model's files: whether their content is that which the cache filed them under."""

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
    """What reading every byte found: the names of the corrupt files, and why other files can't be read."""

    corrupt: tuple[str, ...]
    unreadable: tuple[str, ...]


def examine(snapshot: Snapshot, advance: Advance) -> Findings:
    """Compare the bytes of all files with the hashes that the cache filed them under.

    Large files are filed by SHA-256, small ones by git's blob SHA-1 (`blob <size>\\0` and the bytes). `advance` gets
    the number of bytes that were read. A file that the cache filed under no hash can't be checked and is skipped.
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
    """Return the files whose content the cache filed under its hash."""
    filed = [file for file in snapshot.files if file.blob is not None and not file.problem]
    return [file for file in filed if is_sha256(file.blob) or _GIT_SHA1.fullmatch(file.blob or "")]


def digest(file: File, advance: Advance) -> str:
    """Return the hash of a file's bytes, of the kind that names its blob."""
    with open_file(file) as current:
        if sys.platform == "darwin":
            # Bytes that are read once must not take the place of others in the system's file cache.
            fcntl.fcntl(current.descriptor, fcntl.F_NOCACHE, 1)
        hashed = new_hash(file.blob, current.file.size)
        for offset in range(0, current.file.size, CHUNK_BYTES):
            chunk = current.read(CHUNK_BYTES, offset)
            hashed.update(chunk)
            advance(len(chunk))
    return hashed.hexdigest()


def new_hash(blob: str | None, size: int) -> hashlib._Hash:
    """Return a hash without bytes, of the kind that names this blob of `size` bytes."""
    if is_sha256(blob):
        return hashlib.sha256()
    return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)


def is_sha256(blob: str | None) -> TypeGuard[str]:
    """Return whether a blob is named by SHA-256, as large files are."""
    return blob is not None and _SHA256.fullmatch(blob) is not None
