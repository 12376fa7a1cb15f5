"""A fence around libraries: importing one loads its modules and changes nothing else in this process.

Without it, some libraries change limits, print, read variables that were set for other programs, fail without a working
folder, or end the program.
"""

from __future__ import annotations

import io
import logging
import os
import resource
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from typing import IO, Any, cast


@contextmanager
def fence(variables: Mapping[str, str | None] | None = None) -> Iterator[None]:
    """Protect the limits, stdout, the working folder and the environment from the library that runs in this context.

    Inside, the environment has these variables; a variable with the value None is unset. Text that the library prints
    becomes a warning in the log. Raise ImportError when the library ends the program; its output is the message.
    """
    before = {name: os.environ.get(name) for name in variables or {}}
    set_limit, missing_folder = resource.setrlimit, None
    printed = io.StringIO()
    try:
        _set(variables or {})
        # A hard limit that was lowered can't be raised again.
        resource.setrlimit = _keep_limit
        try:
            os.getcwd()
        except FileNotFoundError:
            # The working folder was deleted, and some libraries fail without one.
            missing_folder = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
            os.chdir("/")
        with redirect_stdout(cast(IO[str], _DividedOutput(sys.stdout, printed))):
            yield
    except SystemExit as end:
        raise ImportError(printed.getvalue().strip() or f"a library ended the program ({end})") from end
    finally:
        if missing_folder is not None:
            os.fchdir(missing_folder)
            os.close(missing_folder)
        resource.setrlimit = set_limit
        _set(before)
    if printed.getvalue():
        logging.getLogger(__name__).warning(printed.getvalue().strip())


class _DividedOutput:
    """What sys.stdout is inside a fence: it collects what this thread prints, and lets other threads print."""

    def __init__(self, stream: IO[str], printed: io.StringIO) -> None:
        self._stream = stream
        self._printed = printed
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        return (self._printed if threading.get_ident() == self._thread else self._stream).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _keep_limit(_kind: int, _limits: tuple[int, int]) -> None:
    """Replace `resource.setrlimit` inside the fence; change nothing."""


def raise_open_files(count: int) -> None:
    """Raise the limit of open files to `count`, or to the hard limit if that is lower; keep a higher limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        count = min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < count:
        # On macOS the kernel allows fewer than the hard limit.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
