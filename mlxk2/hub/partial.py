"""One file during its download: bytes are appended, counted and hashed, and stay when the process dies."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from mlxk2.cache.staging import RemoteFile
from mlxk2.checkpoint import checksums
from mlxk2.checkpoint.files import SAFE_FLAGS
from mlxk2.errors import DownloadFailedError
from mlxk2.hub.private import CHUNK_BYTES

if TYPE_CHECKING:
    from mlxk2.formatting import Advance

# Some hubs can't continue a file and send it from the beginning; that should happen only a few times.
MAX_RESTARTS = 5

_FLAGS = os.O_RDWR | SAFE_FLAGS


class Stopped(Exception):
    """The download was stopped, because another file failed or the user pressed Ctrl-C."""


class Partial:
    """A file whose download continues where an earlier attempt stopped; the existing bytes are hashed first.

    It has the methods of a file that the library's download function calls: `write`, `tell`, `seek` and `truncate`.
    """

    def __init__(self, path: Path, remote: RemoteFile, advance: Advance, stop: Event) -> None:
        self._remote = remote
        self._advance = advance
        self._stop = stop
        self._restarts = 0
        self._handle = _open(path)
        self._restart()
        if os.fstat(self._handle).st_size > remote.size:
            os.ftruncate(self._handle, 0)
        try:
            while chunk := os.read(self._handle, CHUNK_BYTES):
                self._count(chunk)
        except OSError:
            # The disk can't read these bytes; fetch them again into a new file, which gets another place on the disk.
            os.close(self._handle)
            path.unlink(missing_ok=True)
            self._handle = _open(path)
            advance(-self._size)
            self._restart()
        self.resumed_bytes = self._size

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def write(self, chunk: bytes) -> int:
        """Append a chunk; raise Stopped if the download was stopped, DownloadFailedError if the file gets too long."""
        if self._stop.is_set():
            raise Stopped
        if self._size + len(chunk) > self._remote.size:
            raise DownloadFailedError(f"The hub sends more than {self._remote.size} bytes for {self._remote.name}.")
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._handle, view) :]
        self._count(chunk)
        return len(chunk)

    def tell(self) -> int:
        """Return how many bytes the file has."""
        return self._size

    def seek(self, position: int) -> int:
        """Accept only position 0, because bytes are only appended."""
        if position:
            raise ValueError("a partial file can only seek to its beginning")
        return position

    def truncate(self) -> int:
        """Remove all bytes to start again; raise DownloadFailedError if that happens too often."""
        self._restarts += 1
        if self._restarts > MAX_RESTARTS:
            raise DownloadFailedError(
                f"The hub restarts {self._remote.name} again and again, and never sends all of it."
            )
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        self._advance(-self._size)
        self._restart()
        return 0

    def is_whole(self) -> bool:
        """Return whether the file has all bytes and the right hash."""
        return self._size == self._remote.size and self._digest.hexdigest() == self._remote.blob

    def _restart(self) -> None:
        self._size = 0
        self._digest = checksums.new_hash(self._remote.blob, self._remote.size)

    def _count(self, chunk: bytes) -> None:
        self._size += len(chunk)
        self._digest.update(chunk)
        self._advance(len(chunk))


def _open(path: Path) -> int:
    """Open an unfinished file, or create it; replace a link, or a file with a second name, by a new file."""
    with suppress(OSError):  # It does not exist, is a link, or can't be read.
        handle = os.open(path, _FLAGS)
        status = os.fstat(handle)
        if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
            return handle
        os.close(handle)
    path.unlink(missing_ok=True)
    return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
