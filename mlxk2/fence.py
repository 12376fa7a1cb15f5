"""A fence around other people's libraries: importing them changes nothing of this process but its modules.

Some of them change limits, print, read variables that were set for other programs, need a working folder, or end the
program.
"""

from __future__ import annotations

import io
import logging
import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import import_module
from typing import Any

from mlxk2.errors import MlxkError, OperationError

MAX_REASON_CHARACTERS = 300


def import_hub(module: str) -> Any:
    """Import a module of the hub's room; OperationError with the cause where that fails."""
    try:
        with fenced():
            return import_module(module)
    except MlxkError:
        raise
    except Exception as fault:
        raise OperationError(
            f"The hub can't be reached from here: {reason_of(fault)}.",
            hint="Install mlxk2 again, with its dependencies.",
        ) from fault


@contextmanager
def fenced(variables: Mapping[str, str | None] | None = None) -> Iterator[None]:
    """Keep the limits, stdout, the working folder and the environment as they are while a library does its work.

    Inside, the environment has these variables; None stands for one that is not set. What the library prints
    becomes a warning in the log. Raise ImportError where it ends the program, with what it printed as the reason.
    """
    printed = io.StringIO()
    try:
        with _environment(variables or {}), _working_folder(), _limits(), redirect_stdout(printed):
            yield
    except SystemExit as end:
        raise ImportError(printed.getvalue().strip() or f"a library ended the program ({end})") from end
    if printed.getvalue():
        logging.getLogger(__name__).warning(printed.getvalue().strip())


def reason_of(fault: BaseException) -> str:
    """Return what an exception says, in one line without a full stop; its type where it says nothing."""
    said = " ".join(str(fault).split()).rstrip(".")
    return said[:MAX_REASON_CHARACTERS] or type(fault).__name__


@contextmanager
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _working_folder() -> Iterator[None]:
    """Stand in another folder while the working folder is gone, which some libraries look at."""
    try:
        os.getcwd()
    except FileNotFoundError:
        here = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
        os.chdir("/")
        try:
            yield
        finally:
            os.fchdir(here)
            os.close(here)
    else:
        yield


@contextmanager
def _limits() -> Iterator[None]:
    """Ignore changes of the limits: a hard limit that was lowered can't be raised again."""
    change = resource.setrlimit
    resource.setrlimit = _keep_limit
    try:
        yield
    finally:
        resource.setrlimit = change


def _keep_limit(_kind: int, _limits: tuple[int, int]) -> None:
    """Stand in for `resource.setrlimit`."""


def raise_open_files(wanted: int) -> None:
    """Allow this many open files if the hard limit does; a limit that is higher already stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # macOS allows fewer than its hard limit says.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
