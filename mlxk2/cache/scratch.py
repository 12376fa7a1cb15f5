"""Folders for work in progress. The process that makes one locks it, so folders of killed processes are recognisable.

The process locks the file `.lock` in the folder, because SMB and NFS can lock files but not folders. A folder without
that file was made by an earlier version, which locked the folder itself, or its process was killed right after making
it.
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
    """A folder below `parent` that this process has locked until it calls `release`, or the context ends."""

    name: str
    parent: Directory
    folder: Directory
    release: Callable[[], None]

    def names(self) -> list[str]:
        """Return the names in the folder, without the lock file."""
        return [name for name in self.folder.names() if name != LOCK]

    def remove(self) -> None:
        """Remove the folder with its content, the lock file last; links in it are removed, not followed."""
        self.folder.remove_all(self.names())
        # A network file system renames an open file instead of removing it, and then the folder is not empty.
        self.release()
        self.parent.remove(self.name)


@contextmanager
def create(parent: Directory, prefix: str) -> Iterator[Scratch]:
    """Make and lock a new folder whose name begins with `prefix`; the caller must remove it."""
    for _ in range(MAX_ATTEMPTS):
        name = prefix + secrets.token_hex(4)
        parent.make(name)
        with parent.open(name) as folder, ExitStack() as held:
            try:
                # Also lock the folder itself, because earlier versions check only that lock. One of them can already
                # have taken the new folder for an abandoned one.
                is_ours = folder is not None and locks.try_lock(folder.descriptor, parent, name) is not False
                if folder is not None and is_ours:
                    lock = folder.open_file(LOCK, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
                    held.callback(os.close, lock)
                    # The result None, where locks do not work, is enough: no other process knows the new name.
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
    """Yield the folders with this prefix whose processes have died; each is locked until the next one."""
    for name in parent.names():
        if not name.startswith(prefix):
            continue
        with parent.open(name) as folder, ExitStack() as held:
            if folder is None or locks.try_lock(folder.descriptor, parent, name) is False:
                continue
            is_free = held.enter_context(locks.take(folder, LOCK))
            if is_free is None:  # The folder has no lock file.
                is_free = locks.take_if_free(folder.descriptor, parent, name)
            if is_free:
                yield Scratch(name, parent, folder, held.close)
