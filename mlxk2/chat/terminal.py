"""The terminal while the program works: show progress in a line on stderr, and do not echo typed text.

This module does not import MLX.
"""

from __future__ import annotations

import os
import signal
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from types import FrameType
from typing import IO, Any

_DELAY = 0.3  # Seconds before the line is shown, so that it does not flicker during short work.
_INTERVAL = 0.1  # Seconds between two frames.
_FRAMES, _ASCII_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
_ERASE = "\r\x1b[K"
# With these signals the shell takes the terminal, or gives it back.
_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP, signal.SIGCONT)
_LOCAL_MODES = 3  # The index of the local modes in the list from tcgetattr.


class Terminal:
    """The user's terminal; the methods do nothing if the streams are not terminals.

    Inside `quiet`, the terminal does not echo typed text; it keeps the text for the next line that is read, as for a
    shell. `show` displays on stderr what the program is doing, until `hide` is called.
    """

    # rich could show this too, but importing it would delay the first token by a twentieth of a second.

    def __init__(self, stdout: IO[str], stderr: IO[str], *, shows: bool = True) -> None:
        """Use these streams; if `shows` is false, `show` does nothing."""
        self._stderr = stderr
        self._shows = shows and stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._file = stdout.fileno() if stdout.isatty() else None
        self._lock = threading.RLock()
        self._text = ""
        self._since = 0.0
        self._is_drawn = False
        self._drawing: threading.Thread | None = None
        self._modes: list[int | list[bytes | int]] | None = None
        self._handlers: dict[int, Any] = {}

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Turn the echo off inside the block; turn it on after the block, and while the program is suspended."""
        if self._file is not None and _is_foreground(self._file):
            modes = termios.tcgetattr(self._file)
            self._modes = modes if modes[_LOCAL_MODES] & termios.ECHO else None
        self._watch()
        self._set_echo(is_on=False)
        try:
            yield
        finally:
            # Delay Ctrl-C until the terminal is restored.
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            self.hide()
            self._set_echo(is_on=True)
            self._unwatch()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let the block, inside `quiet`, read a line and set the terminal's modes itself."""
        self.hide()
        self._unwatch()
        previous = signal.signal(signal.SIGTERM, self._end_reading)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)
            self._watch()
            self._set_echo(is_on=False)

    def show(self, text: str) -> None:
        """Show an animated line with this text in place of the previous one."""
        if not self._shows:
            return
        with self._lock:
            self._since = self._since if self._text else time.monotonic()
            self._text = text
            if self._drawing is None:
                self._drawing = threading.Thread(target=self._draw, name="terminal", daemon=True)
                self._drawing.start()

    def hide(self) -> None:
        """Erase the line; call this before writing to the terminal."""
        if not self._text:
            return
        with self._lock:
            self._text = ""
            self._erase()

    def _draw(self) -> None:
        """Draw one frame after the other until the text is empty."""
        frames = cycle(_FRAMES if getattr(self._stderr, "encoding", "").lower() == "utf-8" else _ASCII_FRAMES)
        file = self._stderr.fileno()
        while True:
            with self._lock:
                if not self._text:
                    self._drawing = None
                    return
                if time.monotonic() >= self._since + _DELAY and _is_foreground(file):
                    # Leave one column free and the cursor at the beginning, so that other text replaces this line.
                    line = f"{next(frames)} {self._text}"[: (os.get_terminal_size(file).columns or 80) - 1]
                    self._is_drawn = True
                    self._write(f"\r{line}\x1b[K\r")
            time.sleep(_INTERVAL)

    def _erase(self) -> None:
        if self._is_drawn:
            self._is_drawn = False
            self._write(_ERASE)

    def _write(self, text: str) -> None:
        with suppress(OSError):  # The terminal is gone.
            self._stderr.write(text)
            self._stderr.flush()

    def _set_echo(self, *, is_on: bool) -> None:
        """Turn the echo on or off, if it was on at first and this program's job has the terminal."""
        if self._modes is None or self._file is None or not _is_foreground(self._file):
            return
        with suppress(termios.error):
            modes = termios.tcgetattr(self._file)
            modes[_LOCAL_MODES] = modes[_LOCAL_MODES] | termios.ECHO if is_on else modes[_LOCAL_MODES] & ~termios.ECHO
            termios.tcsetattr(self._file, termios.TCSANOW, modes)

    def _watch(self) -> None:
        if self._modes is not None or self._shows:
            self._handlers = {number: signal.signal(number, self._handle_signal) for number in _SIGNALS}

    def _unwatch(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _handle_signal(self, number: int, _frame: FrameType | None) -> None:
        """Restore the terminal before a signal ends or suspends the program; turn the echo off when it continues."""
        if number != signal.SIGCONT:
            with self._lock:
                self._erase()
                self._set_echo(is_on=True)
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
                signal.signal(number, self._handle_signal)
        self._set_echo(is_on=False)

    def _end_reading(self, number: int, _frame: FrameType | None) -> None:
        """Restore the terminal's first modes and end the program, when a signal comes while a line is read."""
        if self._modes is not None and self._file is not None:
            termios.tcsetattr(self._file, termios.TCSANOW, self._modes)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _is_foreground(file: int) -> bool:
    """Return whether this program's job has the terminal; a job without it would be suspended if it set the modes."""
    try:
        return os.tcgetpgrp(file) == os.getpgrp()
    except OSError:
        return False
