"""The terminal while the program works: a line on stderr that says so, and no echo of what is typed. Needs no MLX."""

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

# Seconds before the line is shown: what takes less time than that would only flicker.
_DELAY = 0.3
# Seconds between two frames.
_INTERVAL = 0.1
_FRAMES, _ASCII_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
_ERASE = "\r\x1b[K"
# After these signals the terminal belongs to the shell, or comes back from it.
_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP, signal.SIGCONT)
_LOCAL_MODES = 3  # the index of these modes in what termios returns


class Terminal:
    """The user's terminal; on streams that are not terminals all of this does nothing.

    While `quiet` is entered, the terminal does not echo what is typed: it keeps it for the next line that is read, as
    it does for a shell. `show` says on stderr what the program is doing, until `hide`.
    """

    # rich could show this too, but its import would delay the first token by a twentieth of a second.

    def __init__(self, stdout: IO[str], stderr: IO[str], *, shows: bool = True) -> None:
        """Show nothing without `shows`."""
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
        """Do not echo what is typed inside the block; the terminal is as it was after it, and for the shell."""
        if self._file is not None and _is_foreground(self._file):
            modes = termios.tcgetattr(self._file)
            self._modes = modes if modes[_LOCAL_MODES] & termios.ECHO else None
        self._watch()
        self._set_echo(is_on=False)
        try:
            yield
        finally:
            # Ctrl-C waits until this is done.
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            self.hide()
            self._set_echo(is_on=True)
            self._unwatch()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let the block, inside a quiet one, read a line; it sets the terminal's modes as it likes."""
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
        """Show a text that moves, in place of the one before."""
        if not self._shows:
            return
        with self._lock:
            self._since = self._since if self._text else time.monotonic()
            self._text = text
            if self._drawing is None:
                self._drawing = threading.Thread(target=self._draw, name="terminal", daemon=True)
                self._drawing.start()

    def hide(self) -> None:
        """Erase the text; write to the terminal only after that."""
        if not self._text:
            return
        with self._lock:
            self._text = ""
            self._erase()

    def _draw(self) -> None:
        """Draw frame after frame, until there is no text."""
        frames = cycle(_FRAMES if getattr(self._stderr, "encoding", "").lower() == "utf-8" else _ASCII_FRAMES)
        file = self._stderr.fileno()
        while True:
            with self._lock:
                if not self._text:
                    self._drawing = None
                    return
                if time.monotonic() >= self._since + _DELAY and _is_foreground(file):
                    # One column stays free, and the cursor at the begin: other text replaces this line.
                    line = f"{next(frames)} {self._text}"[: (os.get_terminal_size(file).columns or 80) - 1]
                    self._is_drawn = True
                    self._write(f"\r{line}\x1b[K\r")
            time.sleep(_INTERVAL)

    def _erase(self) -> None:
        if self._is_drawn:
            self._is_drawn = False
            self._write(_ERASE)

    def _write(self, text: str) -> None:
        with suppress(OSError):  # the terminal is gone
            self._stderr.write(text)
            self._stderr.flush()

    def _set_echo(self, *, is_on: bool) -> None:
        """Switch the echo, if it was on and the terminal is not another job's, which may set its modes itself."""
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
        """Give the terminal back before a signal ends or suspends the program, and take it after that."""
        if number != signal.SIGCONT:
            with self._lock:
                self._erase()
                self._set_echo(is_on=True)
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
                signal.signal(number, self._handle_signal)
        self._set_echo(is_on=False)

    def _end_reading(self, number: int, _frame: FrameType | None) -> None:
        """End the program by a signal while a line is read, with the modes that the terminal had at first."""
        if self._modes is not None and self._file is not None:
            termios.tcsetattr(self._file, termios.TCSANOW, self._modes)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _is_foreground(file: int) -> bool:
    """Whether this program's job has the terminal; another one that sets its modes would be suspended."""
    try:
        return os.tcgetpgrp(file) == os.getpgrp()
    except OSError:
        return False
