"""`--reload`: one process serves, and another one restarts it when the program's code changes."""

from __future__ import annotations

import multiprocessing
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.supervisors.statreload import StatReload

import mlxk2

# Serves on these sockets, and sets the event as soon as the server accepts requests. It is pickled for the other
# process.
Serve = Callable[[Event, list[socket.socket]], None]


class Reloader(StatReload):
    """uvicorn's supervisor, changed to call `announce` when the first server is ready; `stopped_by` is the signal."""

    def __init__(self, serve: Serve, listener: socket.socket, announce: Callable[[], None]) -> None:
        self.stopped_by: int | None = None
        self._is_ready = multiprocessing.get_context("spawn").Event()
        self._announce = announce
        folder = str(Path(mlxk2.__file__).parent)
        config = uvicorn.Config("", reload=True, reload_dirs=folder, log_config=None)
        super().__init__(config, partial(serve, self._is_ready), [listener])

    def startup(self) -> None:
        """Start the server, and wait until it is ready or has ended."""
        self._read_times()
        super().startup()
        while self.stopped_by is None and self.process.is_alive():
            if self._is_ready.wait(0.1):
                self._announce()
                return

    def restart(self) -> None:
        """Replace the server's process; a change from now on restarts it again."""
        self._read_times()
        # StatReload's own method reads the times later, and misses a change that comes before.
        super(StatReload, self).restart()

    def _read_times(self) -> None:
        self.mtimes.clear()
        for file in self.iter_py_files():
            with suppress(OSError):  # it was removed
                self.mtimes[file] = file.stat().st_mtime

    def signal_handler(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        """Store the signal; `pause` handles it."""
        # The base class sets an event, which can deadlock if the signal interrupts code that holds the event's lock.
        self.stopped_by = self.stopped_by or sig
        # A second Ctrl-C ends this process at once; the server notices that.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def pause(self) -> None:
        """Wait until the next check of the code; raise StopIteration after a signal."""
        time.sleep(self.config.reload_delay)
        if self.stopped_by is not None:
            raise StopIteration


def serve_reloading(serve: Serve, listener: socket.socket, announce: Callable[[], None]) -> int | None:
    """Serve in another process, and replace the process when the code changes; return the signal that stopped it."""
    reloader = Reloader(serve, listener, announce)
    reloader.run()
    return reloader.stopped_by
