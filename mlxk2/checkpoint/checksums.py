"""Whether a model's files still have the content that the cache filed them under: every byte is read."""

from __future__ import annotations

import fcntl
import hashlib
import re
import sys
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

from mlxk2.checkpoint.files import BrokenFile, File, opened
from mlxk2.checkpoint.snapshot import Contents

if TYPE_CHECKING:
    from mlxk2.formatting import Advance

CHUNK_BYTES = 1 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")


class Findings(NamedTuple):
    """What came of reading every byte: the names of the corrupt files, and why others can't be read."""

    corrupt: tuple[str, ...]
    unreadable: tuple[str, ...]


def examine(contents: Contents, advance: Advance) -> Findings:
    """Compare the bytes of all files with the hashes that the cache filed them under.

    Large files are filed by SHA-256, small ones by git's blob SHA-1 (`blob <size>\\0` and the bytes). `advance` is
    told how many bytes were read. A file that the cache filed under no hash can't be checked and is passed over.
    """
    corrupt, unreadable = [], []
    for file in hashed_files(contents):
        try:
            if digest(file, advance) != file.blob:
                corrupt.append(file.name)
        except BrokenFile as error:
            unreadable.append(str(error))
    return Findings(tuple(corrupt), tuple(unreadable))


def hashed_files(contents: Contents) -> list[File]:
    """The files whose content the cache filed under its hash."""
    return [file for file in contents.files if _is_hash(file.blob) and not file.problem]


def _is_hash(blob: str | None) -> bool:
    return is_sha256(blob) or (blob is not None and _GIT_SHA1.fullmatch(blob) is not None)


def digest(file: File, advance: Advance) -> str:
    """The hash of a file's bytes, of the kind that names its blob."""
    with opened(file) as current:
        if sys.platform == "darwin":
            # What is read once must not drive from memory what is used.
            fcntl.fcntl(current.descriptor, fcntl.F_NOCACHE, 1)
        hashed = begun(file.blob, current.file.size)
        for offset in range(0, current.file.size, CHUNK_BYTES):
            chunk = current.read(CHUNK_BYTES, offset)
            hashed.update(chunk)
            advance(len(chunk))
    return hashed.hexdigest()


def begun(blob: str | None, size: int) -> hashlib._Hash:
    """A hash, of no bytes yet, of the kind that names this blob of `size` bytes."""
    if is_sha256(blob):
        return hashlib.sha256()
    return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)


def is_sha256(blob: str | None) -> TypeGuard[str]:
    """Whether a blob is named by SHA-256, as large files are."""
    return blob is not None and _SHA256.fullmatch(blob) is not None
