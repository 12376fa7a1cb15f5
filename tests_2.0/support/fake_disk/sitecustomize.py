"""Imitate other file systems in a Python program: Python imports this file at its start when it is on the path.

`FLOCK` is `<name of an errno, or "granted"> <"folders" or "all">`: the result of flock. With `COMPANIONS` set, removing
a name also removes its companion `._name`, as on exFAT, FAT and SMB disks of macOS. `MKDIR` is the name of the errno
with which every mkdir fails.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import Any

_unlink, _rmdir, _flock = os.unlink, os.rmdir, fcntl.flock


def _fake_flock(handle: Any, operation: int) -> None:
    answer, things = os.environ["FLOCK"].split()
    number = handle if isinstance(handle, int) else handle.fileno()
    if things == "folders" and not stat.S_ISDIR(os.fstat(number).st_mode):
        _flock(handle, operation)
    elif answer != "granted":
        raise OSError(getattr(errno, answer), os.strerror(getattr(errno, answer)))


def _unlink_both(path: Any, *, dir_fd: int | None = None) -> None:
    _unlink(path, dir_fd=dir_fd)
    _drop_companion(path, dir_fd)


def _rmdir_both(path: Any, *, dir_fd: int | None = None) -> None:
    _rmdir(path, dir_fd=dir_fd)
    _drop_companion(path, dir_fd)


def _drop_companion(path: Any, dir_fd: int | None) -> None:
    folder, name = os.path.split(os.fspath(path))
    with contextlib.suppress(FileNotFoundError):
        _unlink(os.path.join(folder, "._" + name), dir_fd=dir_fd)


def _no_mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:  # noqa: ARG001 - as os.mkdir
    number = getattr(errno, os.environ["MKDIR"])
    raise OSError(number, os.strerror(number), path)


if "MKDIR" in os.environ:
    os.mkdir = _no_mkdir
if "FLOCK" in os.environ:
    fcntl.flock = _fake_flock
if "COMPANIONS" in os.environ:
    # shutil asks whether these functions take a dir_fd.
    os.supports_dir_fd |= {_unlink_both, _rmdir_both}
    os.unlink = os.remove = _unlink_both
    os.rmdir = _rmdir_both
