"""Keep a Mac awake while it works."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

_PROGRAM = "caffeinate"


class NoSleep:
    """Prevents idle sleep on macOS while at least one `hold` block runs, with one `caffeinate` process for all blocks.

    The process ends `linger` seconds after the last block, so that many short blocks share it. It also ends when this
    process ends. Other systems need nothing, and nothing happens there.
    """

    def __init__(self, platform: str = sys.platform, linger: float = 0.0) -> None:
        self._is_mac = platform == "darwin"
        self._linger = linger
        self._lock = threading.Lock()
        self._held = 0
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the machine awake inside the block."""
        if not self._is_mac:
            yield
            return
        with self._lock:
            self._held += 1
            if self._process is None or self._process.poll() is not None:
                # Every command imports this module; these two imports would take a tenth of the time of `list`.
                import logging  # noqa: PLC0415
                import subprocess  # noqa: PLC0415

                nothing = subprocess.DEVNULL
                command = [_PROGRAM, "-i", "-w", str(os.getpid())]
                try:
                    self._process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
                except OSError as error:
                    self._process = None
                    logging.debug("%s can't be started; the machine can fall asleep: %s", _PROGRAM, error)
        try:
            yield
        finally:
            with self._lock:
                self._held -= 1
                is_last = not self._held and self._process is not None
            if is_last and self._linger:
                timer = threading.Timer(self._linger, self._rest)
                timer.daemon = True
                timer.start()
            elif is_last:
                self._rest()

    def _rest(self) -> None:
        with self._lock:
            process = None if self._held else self._process
            if process is not None:
                self._process = None
                process.kill()
                process.wait()
