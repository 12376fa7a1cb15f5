"""The bytes of one file while they come in: appended, counted and hashed, kept when the process dies."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from mlxk2.cache import hashes
from mlxk2.cache.delivery import Wanted
from mlxk2.errors import DownloadFailedError
from mlxk2.hub.library import CHUNK_BYTES

if TYPE_CHECKING:
    from mlxk2.progress import Advance


class Stopped(Exception):
    """Another file failed, or the user interrupted: nobody waits for this one any more."""


class Partial:
    """A file that is written from where an earlier attempt stopped; what was there already is hashed first.

    It has what the library's download function needs of a file: `write`, `tell`, `seek` and `truncate`.
    """

    def __init__(self, path: Path, wanted: Wanted, advance: Advance, stop: Event) -> None:
        self._wanted = wanted
        self._advance = advance
        self._stop = stop
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        self._restart()
        self.resumed = self._read_back()

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def write(self, chunk: bytes) -> int:
        """Append a chunk; Stopped when nobody waits for it, DownloadFailedError when the file becomes too long."""
        if self._stop.is_set():
            raise Stopped
        if self._size + len(chunk) > self._wanted.size:
            raise DownloadFailedError(f"The hub sends more than the {self._wanted.size} bytes of {self._wanted.name}.")
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._handle, view) :]
        self._count(chunk)
        return len(chunk)

    def tell(self) -> int:
        """How many bytes there are."""
        return self._size

    def seek(self, position: int) -> int:
        """Go back to the start, the only place to go."""
        if position:
            raise ValueError("a partial file is read and written from its start only")
        return position

    def truncate(self) -> int:
        """Forget all bytes: the file begins again."""
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        self._advance(-self._size)
        self._restart()
        return 0

    def is_whole(self) -> bool:
        """Whether the bytes are all there and are those that the hub promised, by their hash."""
        return self._size == self._wanted.size and self._digest.hexdigest() == self._wanted.blob

    def _restart(self) -> None:
        self._size = 0
        self._digest = hashes.begun(self._wanted.blob, self._wanted.size)

    def _read_back(self) -> int:
        if os.fstat(self._handle).st_size > self._wanted.size:
            os.ftruncate(self._handle, 0)
        while chunk := os.read(self._handle, CHUNK_BYTES):
            self._count(chunk)
        return self._size

    def _count(self, chunk: bytes) -> None:
        self._size += len(chunk)
        self._digest.update(chunk)
        self._advance(len(chunk))
