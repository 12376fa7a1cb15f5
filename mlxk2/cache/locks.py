"""The lock files of downloads, `.locks/models--…/<etag>.lock`: each is held by a living process or is stale.

The locks are those of flock, as in huggingface_hub, which uses the library filelock; a process that dies loses its
locks. Some network file systems have no locks, or grant every lock to every process. There, a lock file counts as held
for a day.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from mlxk2.cache import space
from mlxk2.cache.directory import Directory
from mlxk2.cache.space import Usage
from mlxk2.checkpoint.files import SAFE_FLAGS
from mlxk2.names import is_macos_metadata

FOLDER = ".locks"
PULL_LOCK = "pull.lock"  # `pull` holds it from beginning to end.
ABANDONED_SECONDS = 24 * 60 * 60  # Where locks do not work, an older lock file is free: no download takes longer.
# The errors of flock on file systems without locks: SMB, and NFS without locks or without its lock service.
UNSUPPORTED = (errno.EISDIR, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK)

_FLAGS = os.O_RDONLY | SAFE_FLAGS


class Locks(NamedTuple):
    """The lock files of a model, as paths relative to the cache folder."""

    living: tuple[str, ...]
    stale: tuple[str, ...]


def find(cache_dir: Directory, folder: str) -> Locks:
    """Find the lock files of the model in a `models--…` folder."""
    found = [(f"{FOLDER}/{folder}/{name}", is_free) for name, _, is_free in _take_each(cache_dir, folder)]
    return Locks(
        living=tuple(name for name, is_free in found if not is_free),
        stale=tuple(name for name, is_free in found if is_free),
    )


def count(cache_dir: Directory, folder: str, locks: Locks, usage: Usage) -> None:
    """Add the space that `clean` would free to `usage`."""
    with cache_dir.open(FOLDER) as parent:
        if parent is None:
            return
        if not locks.living:
            usage.add(parent, folder)
            return
        with parent.open(folder) as own:
            if own is not None:
                for name in locks.stale:
                    usage.add(own, os.path.basename(name))


def clean(cache_dir: Directory, folder: str, usage: Usage) -> int:
    """Remove a model's lock files that no process holds, and return their number.

    A lock file that is held stays, even with `--force`: without it, a second download could start while the first one
    runs.
    """
    cleaned = 0
    for name, own, is_free in _take_each(cache_dir, folder):
        if is_free:
            usage.remove(own, name)
            cleaned += 1
    with cache_dir.open(FOLDER) as parent:
        if parent is None:
            return cleaned
        with parent.open(folder) as rest:
            left = [] if rest is None else rest.names()
            if rest is not None and all(map(is_macos_metadata, left)):
                for name in left:
                    usage.remove(rest, name)
        try:
            status = parent.status(folder)
            parent.remove_empty(folder)
        except OSError as error:
            # The folder is missing, is a link, or has a lock file that is held: leave it as it is.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            usage.add_status(status)
    return cleaned


@contextmanager
def claim(cache_dir: Directory, folder: str) -> Iterator[bool]:
    """Keep `pull` from changing a model while the block runs; yield False when a pull is running.

    If the disk is too full for a lock file, the block runs without one, since a pull can't create it either.
    """
    with ExitStack() as opened:
        own = cache_dir
        for name in (FOLDER, folder):
            opened.enter_context(_make_folder(own, name))
            inner = opened.enter_context(own.open(name))
            if inner is None:
                yield True  # The disk is full; or the folder is a link, and mlxk2 keeps no locks behind links.
                return
            own = inner
        is_new = PULL_LOCK not in own.names()
        try:
            lock = own.open_file(PULL_LOCK, _FLAGS | os.O_CREAT, 0o664)
        except OSError as error:
            if error.errno not in space.FULL:
                raise
            yield True
            return
        opened.callback(os.close, lock)
        is_ours = try_lock(lock, own, PULL_LOCK) is not False
        yield is_ours
        if is_ours and is_new:
            with suppress(FileNotFoundError):
                own.unlink(PULL_LOCK)


@contextmanager
def _make_folder(parent: Directory, name: str) -> Iterator[None]:
    """Make a folder if it is missing; after the block, remove it again if it is empty."""
    try:
        parent.make(name)
    except OSError as error:
        if error.errno not in (errno.EEXIST, *space.FULL):
            raise
        yield
        return
    yield
    with suppress(OSError):
        parent.remove_empty(name)


def try_lock(descriptor: int, parent: Directory, name: str) -> bool | None:
    """Take the lock of an open file or folder, and return True when this process has it now.

    Return False when another process has the lock, or a different file has the `name` in `parent` now. Return None
    where locks do not work.
    """
    if (is_ours := _flock(descriptor)) is not True:
        return is_ours
    try:
        second = parent.open_file(name, _FLAGS)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return False
    try:
        if not os.path.samestat(os.fstat(descriptor), os.fstat(second)):
            return False
        # Some network file systems grant every lock, also to this second descriptor. There, a lock proves nothing.
        return True if _flock(second) is False else None
    finally:
        os.close(second)


def _flock(descriptor: int) -> bool | None:
    """Ask for a lock; return False when another descriptor holds it, None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
    return True


def take_if_free(descriptor: int, parent: Directory, name: str) -> bool:
    """Take the lock of an open file or folder; return whether this process has it now.

    Where locks do not work, return whether the file is so old that its holder must have ended.
    """
    is_ours = try_lock(descriptor, parent, name)
    if is_ours is not None:
        return is_ours
    return time.time() - os.fstat(descriptor).st_mtime > ABANDONED_SECONDS


def is_held(path: Path) -> bool:
    """Return whether any process, including this one, holds a lock file; return False where locks do not work.

    A free lock is taken for a moment; a process that asks for it in this moment finds it held.
    """
    descriptor = os.open(path, _FLAGS)
    try:
        return _flock(descriptor) is False
    finally:
        os.close(descriptor)


@contextmanager
def take(parent: Directory, name: str) -> Iterator[bool | None]:
    """Take a lock file's lock if it is free, and yield whether it was free; yield None if it is not a regular file."""
    try:
        descriptor = parent.open_file(name, _FLAGS)
    except PermissionError:
        yield False  # It belongs to another user, who can be holding it.
        return
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            raise
        yield None
        return
    try:
        yield take_if_free(descriptor, parent, name) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    finally:
        os.close(descriptor)


def _take_each(cache_dir: Directory, folder: str) -> Iterator[tuple[str, Directory, bool]]:
    """Yield each lock file of a model, its folder, and whether it was free; a free one is locked until the next one."""
    with cache_dir.open(FOLDER, folder) as own:
        if own is None:
            return
        for name in own.names():
            if is_macos_metadata(name):
                continue
            with take(own, name) as was_free:
                if was_free is not None:
                    yield name, own, was_free
