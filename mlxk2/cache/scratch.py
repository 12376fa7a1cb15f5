"""Folders for work in progress. Their makers lock them, so that the folders of killed processes can be recognised.

The lock is that of the file `.lock` in the folder: SMB and NFS lock files, but refuse to lock folders, or grant every
lock of a folder to every process. A folder without that file is of an earlier version, which locked the folder itself,
or of a process that was killed at its first step.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from mlxk2.cache import locks
from mlxk2.cache.directory import Directory

LOCK = ".lock"
MAX_ATTEMPTS = 10


class Scratch(NamedTuple):
    """A folder below `parent` that is ours until `release` is called, or its context ends."""

    name: str
    parent: Directory
    folder: Directory
    release: Callable[[], None]

    def names(self) -> list[str]:
        """Return the names of what is in the folder, without its lock."""
        return [name for name in self.folder.names() if name != LOCK]

    def remove(self) -> None:
        """Remove the folder and all that is in it, the lock last; links in it are removed, not followed."""
        self.folder.remove_all(self.names())
        # A network file system keeps a file that is open under another name in the folder, which then can't go.
        self.release()
        self.parent.remove(self.name)


@contextmanager
def create(parent: Directory, prefix: str) -> Iterator[Scratch]:
    """Make a new folder whose name begins with `prefix`; it stays, for the caller to remove."""
    for _ in range(MAX_ATTEMPTS):
        name = prefix + secrets.token_hex(4)
        parent.make(name)
        with parent.open(name) as folder, ExitStack() as held:
            try:
                # The lock of the folder itself is for processes of earlier versions, which know no other. They may
                # have taken the new folder for an abandoned one.
                is_ours = folder is not None and locks.try_lock(folder.descriptor, parent, name) is not False
                if folder is not None and is_ours:
                    lock = folder.open_file(LOCK, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
                    held.callback(os.close, lock)
                    # Where there are no locks, the folder is ours all the same: its name is new.
                    is_ours = locks.try_lock(lock, folder, LOCK) is not False
            except OSError:
                parent.remove(name)
                raise
            if folder is not None and is_ours:
                yield Scratch(name, parent, folder, held.close)
                return
        parent.remove(name)
    raise OSError(errno.EAGAIN, "other processes lock every new folder")


def find_abandoned(parent: Directory, prefix: str) -> Iterator[Scratch]:
    """Yield the folders with this prefix whose makers are dead; each is ours until the next one is asked for."""
    for name in parent.names():
        if not name.startswith(prefix):
            continue
        with parent.open(name) as folder, ExitStack() as held:
            if folder is None or locks.try_lock(folder.descriptor, parent, name) is False:
                continue
            is_free = held.enter_context(locks.take(folder, LOCK))
            if is_free is None:  # There is no lock file in it.
                is_free = locks.take_if_free(folder.descriptor, parent, name)
            if is_free:
                yield Scratch(name, parent, folder, held.close)
