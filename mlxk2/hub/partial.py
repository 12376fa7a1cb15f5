"""The bytes of one file while they come in: appended, counted and hashed, kept when the process dies."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from mlxk2.cache.staging import Wanted
from mlxk2.checkpoint import checksums
from mlxk2.checkpoint.files import SAFELY
from mlxk2.errors import DownloadFailedError
from mlxk2.hub.private import CHUNK_BYTES

if TYPE_CHECKING:
    from mlxk2.formatting import Advance


# An honest hub that can't go on from where it stopped begins anew a few times at most.
MAX_RESTARTS = 5


class Stopped(Exception):
    """Another file failed, or the user interrupted: nobody waits for this one any more."""


_FLAGS = os.O_RDWR | SAFELY


def _opened(path: Path) -> int:
    """A handle of an unfinished file, which no other name shares; what is there instead makes room for a new one."""
    try:
        handle = os.open(path, _FLAGS)
    except OSError:
        return _new(path)  # there is none, or a link, or a file that can't be read
    status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return handle
    os.close(handle)
    return _new(path)


def _new(path: Path) -> int:
    """A handle of a new file in the place of what is there; OSError for a folder."""
    path.unlink(missing_ok=True)
    return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)


class Partial:
    """A file that is written from where an earlier attempt stopped; what was there already is hashed first.

    It has what the library's download function needs of a file: `write`, `tell`, `seek` and `truncate`.
    """

    def __init__(self, path: Path, wanted: Wanted, advance: Advance, stop: Event) -> None:
        self._wanted = wanted
        self._advance = advance
        self._stop = stop
        self._restarts = 0
        self._path = path
        self._handle = _opened(path)
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
        """Forget all bytes: the file begins again. DownloadFailedError when it has begun too often."""
        self._restarts += 1
        if self._restarts > MAX_RESTARTS:
            raise DownloadFailedError(f"The hub begins {self._wanted.name} anew each time, and never sends all of it.")
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
        self._digest = checksums.begun(self._wanted.blob, self._wanted.size)

    def _read_back(self) -> int:
        if os.fstat(self._handle).st_size > self._wanted.size:
            os.ftruncate(self._handle, 0)
        try:
            while chunk := os.read(self._handle, CHUNK_BYTES):
                self._count(chunk)
        except OSError:
            # A fault of the disk under bytes that can be fetched again, to another place of it.
            os.close(self._handle)
            self._handle = _new(self._path)
            self._advance(-self._size)
            self._restart()
        return self._size

    def _count(self, chunk: bytes) -> None:
        self._size += len(chunk)
        self._digest.update(chunk)
        self._advance(len(chunk))
