"""Folders for work in progress. Their maker holds a lock in each, by which the folders of killed processes are known.

The lock is that of the file `.lock` in the folder: SMB and NFS lock files, but refuse to lock folders, or grant every
lock of a folder to everyone. Folders without that file are of earlier versions, which locked the folder, or of a
process that was killed at its first step.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from mlxk2.cache import directory, locks

LOCK = ".lock"
MAX_ATTEMPTS = 10


class Scratch(NamedTuple):
    """A folder that is ours until `release` is called, or its context ends."""

    name: str
    handle: int
    release: Callable[[], None]


@contextmanager
def created(prefix: str, below: int) -> Iterator[Scratch]:
    """Make a new folder whose name begins with `prefix`; it stays, for the caller to remove."""
    for _ in range(MAX_ATTEMPTS):
        name = prefix + secrets.token_hex(4)
        os.mkdir(name, dir_fd=below)
        with directory.folder(name, below=below) as handle, ExitStack() as held:
            try:
                is_ours = handle is not None and _lock_new(name, handle, below, held)
            except OSError:
                directory.remove(name, below)
                raise
            if handle is not None and is_ours:
                yield Scratch(name, handle, held.close)
                return
        directory.remove(name, below)
    raise OSError(errno.EAGAIN, "other processes lock every new folder")


def _lock_new(name: str, handle: int, below: int, held: ExitStack) -> bool:
    """Lock a new folder; False when another process took it for an abandoned one before."""
    # The lock of the folder itself is for processes of earlier versions, which know no other.
    if locks.try_lock(handle, name, below) is False:
        return False
    lock = os.open(LOCK, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=handle)
    held.callback(os.close, lock)
    # Where there are no locks, the folder is ours all the same: its name is new.
    return locks.try_lock(lock, LOCK, handle) is not False


def abandoned(prefix: str, below: int) -> Iterator[Scratch]:
    """Yield the folders of this prefix whose makers are dead; each is ours until the next one is asked for."""
    for name in directory.names_in(below=below):
        if name.startswith(prefix):
            with directory.folder(name, below=below) as handle, ExitStack() as held:
                if handle is not None and _lock_abandoned(name, handle, below, held):
                    yield Scratch(name, handle, held.close)


def _lock_abandoned(name: str, handle: int, below: int, held: ExitStack) -> bool:
    """Take the lock in a folder, or that of the folder itself where there is none in it."""
    if locks.try_lock(handle, name, below) is False:
        return False
    is_free = held.enter_context(locks.taken(LOCK, handle))
    return locks.is_free(handle, name, below) if is_free is None else is_free


def names_in(scratch: Scratch) -> list[str]:
    """List what is in a folder, without its lock."""
    return [name for name in directory.names_in(below=scratch.handle) if name != LOCK]


def remove(scratch: Scratch, below: int) -> None:
    """Remove a folder and all that is in it, the lock last; links in it are removed, not followed."""
    directory.remove_all(names_in(scratch), scratch.handle)
    # A network file system keeps a file that is open under another name in the folder, which then can't go.
    scratch.release()
    directory.remove(scratch.name, below)
