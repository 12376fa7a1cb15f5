"""`--reload`: one process serves, another starts it again whenever the program's code changes."""

from __future__ import annotations

import multiprocessing
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.supervisors.statreload import StatReload

import mlxk2

# Serves on the sockets that it is given, and sets the event as soon as they answer; sent to another process.
Target = Callable[[Event, list[socket.socket]], None]


class Reloader(StatReload):
    """uvicorn's supervisor, which tells when the first server answers, and which signal ended it."""

    def __init__(self, target: Target, listener: socket.socket, announce: Callable[[], None]) -> None:
        self.stopped_by: int | None = None
        self._answers = multiprocessing.get_context("spawn").Event()
        self._announce = announce
        folder = str(Path(mlxk2.__file__).parent)
        config = uvicorn.Config("", reload=True, reload_dirs=folder, log_config=None)
        super().__init__(config, partial(target, self._answers), [listener])

    def startup(self) -> None:
        super().startup()
        while self.stopped_by is None and self.process.is_alive():
            if self._answers.wait(0.1):
                self._announce()
                return

    def signal_handler(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as it is called
        # Not by the event of the base class: what the signal interrupts may hold its lock, and would wait for itself.
        self.stopped_by = self.stopped_by or sig
        # A second Ctrl-C ends the process at once; the server notices.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def pause(self) -> None:
        time.sleep(self.config.reload_delay)
        if self.stopped_by is not None:
            raise StopIteration


def serve_reloading(target: Target, listener: socket.socket, announce: Callable[[], None]) -> int | None:
    """Serve in a process of its own, which is replaced when the code changes, until a signal comes; return it."""
    reloader = Reloader(target, listener, announce)
    reloader.run()
    return reloader.stopped_by
