"""The lock files of downloads, `.locks/models--…/<etag>.lock`: held by a living process, or left behind.

flock decides, as in filelock, with which huggingface_hub takes them: a process that dies loses its locks. Network file
systems may have no locks, or grant every lock to every process: there a lock file counts as held for a day.
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
from mlxk2.checkpoint.files import SAFELY
from mlxk2.names import is_macos_metadata

FOLDER = ".locks"
PULL_LOCK = "pull.lock"  # `pull` holds it from its first look at the model to its end.
ABANDONED_SECONDS = 24 * 60 * 60  # Where locks mean nothing, an older lock file is free: no download takes longer.
# The errors of flock where there are no locks: on SMB, on NFS without locks or whose lock service is away.
UNSUPPORTED = (errno.EISDIR, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK)

_FLAGS = os.O_RDONLY | SAFELY


class Locks(NamedTuple):
    """The lock files of a model, by their names relative to the cache folder."""

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
    """Count the room that `clean` would free."""
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
    """Remove a model's lock files that no process holds, and return how many they were.

    A lock file that is held stays, even if the removal is forced: without it a second download could start beside the
    process that holds it.
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
            # Nothing there, a link, or a lock that is held: all of these stay as they are.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            usage.add_status(status)
    return cleaned


@contextmanager
def claim(cache_dir: Directory, folder: str) -> Iterator[bool]:
    """Keep `pull` from a model while the block runs; False when a pull is at work.

    Where the disk is too full for the lock, there is none: a pull can't take it either.
    """
    with ExitStack() as opened:
        own = cache_dir
        for name in (FOLDER, folder):
            opened.enter_context(_make_folder(own, name))
            inner = opened.enter_context(own.open(name))
            if inner is None:
                yield True  # the disk is full, or a link is in its place, behind which nothing of ours is
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
    """Make a folder for as long as the block runs, unless it is there; it stays when something is in it."""
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
    """Take the lock of an open file or folder that has this name in its parent.

    False when another process has it, or something else has the name now. None where locks mean nothing.
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
        # Some network file systems grant every lock. There the second descriptor gets it too.
        return True if _flock(second) is False else None
    finally:
        os.close(second)


def _flock(descriptor: int) -> bool | None:
    """Ask for a lock: False when another descriptor holds it, None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
    return True


def take_if_free(descriptor: int, parent: Directory, name: str) -> bool:
    """Take the lock of an open file or folder; return whether it is ours now, or too old for its holder to live."""
    is_ours = try_lock(descriptor, parent, name)
    if is_ours is not None:
        return is_ours
    return time.time() - os.fstat(descriptor).st_mtime > ABANDONED_SECONDS


def is_held(path: Path) -> bool:
    """Return whether any process holds a lock file, this one included; always False where locks mean nothing.

    A lock that is free is taken for a moment, in which another process that asks takes it to be held.
    """
    descriptor = os.open(path, _FLAGS)
    try:
        return _flock(descriptor) is False
    finally:
        os.close(descriptor)


@contextmanager
def take(parent: Directory, name: str) -> Iterator[bool | None]:
    """Take a lock file's lock if it is free, and yield whether it was; None for what is not a lock file."""
    try:
        descriptor = parent.open_file(name, _FLAGS)
    except PermissionError:
        yield False  # another user's, who may hold it
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
    """Yield each lock file of a model, its folder, and whether it was free; if so, it is ours until the next one."""
    with cache_dir.open(FOLDER, folder) as own:
        if own is None:
            return
        for name in own.names():
            if is_macos_metadata(name):
                continue
            with take(own, name) as was_free:
                if was_free is not None:
                    yield name, own, was_free
