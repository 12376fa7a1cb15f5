"""A stream that writes to a file, a pipe or a terminal and never waits for its reader."""

from __future__ import annotations

import atexit
import io
import os
import select
import threading
from typing import IO

MAX_WAITING_BYTES = 1 << 20  # Further lines are dropped.
MAX_WAIT_SECONDS = 0.5  # When the program ends.


class Outlet(io.TextIOBase):
    """A text stream that replaces another one and writes its bytes in a background thread.

    When too many bytes are waiting, it drops and counts further lines, and writes the count as soon as it can.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self._stream = stream  # Without this reference, Python would close the file.
        self._file = stream.fileno()
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._size = 0
        self._dropped = 0
        self._is_writing = False
        self._error: OSError | None = None
        self._instead: Outlet | None = None
        threading.Thread(target=self._write_all, name="outlet", daemon=True).start()
        atexit.register(self.drain, MAX_WAIT_SECONDS)

    def write(self, text: str) -> int:
        """Queue text to be written soon; drop it if too many bytes are waiting."""
        if self._instead is not None:
            return self._instead.write(text)
        data = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._size + len(data) <= MAX_WAITING_BYTES:
                self._waiting.append(data)
                self._size += len(data)
            else:
                self._dropped += max(1, text.count("\n"))
            self._changed.notify_all()
        return len(text)

    def drain(self, seconds: float) -> None:
        """Wait until everything is written, but at most this long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._is_writing, seconds)

    def deliver(self, seconds: float) -> None:
        """Wait as `drain` does, and raise OSError if something could not be written."""
        self.drain(seconds)
        if self._error is not None:
            raise self._error

    def pass_on_to(self, other: Outlet) -> None:
        """Write all further text to another outlet."""
        self._instead = other

    def writable(self) -> bool:
        """Return True, because text can be written."""
        return True

    def fileno(self) -> int:
        """Return the file descriptor of the replaced stream."""
        return self._file

    def isatty(self) -> bool:
        """Return whether the replaced stream is a terminal."""
        return os.isatty(self._file)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._dropped)
                data = b"".join(self._waiting)
                if self._dropped:
                    data += b"WARNING: %d lines were dropped here, because no program read them.\n" % self._dropped
                self._waiting, self._size, self._dropped, self._is_writing = [], 0, 0, True
            try:
                while data:
                    try:
                        data = data[os.write(self._file, data) :]
                    except BlockingIOError:
                        # Another program that shares the pipe has made it non-blocking.
                        select.select([], [self._file], [])
            except OSError as error:
                # The reader is gone, or the disk is full; the program continues.
                self._error = error
