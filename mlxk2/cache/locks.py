"""The lock files of downloads, `hub/.locks/models--…/<etag>.lock`: held by a living process, or left behind.

What counts is flock's word, as for filelock, by which huggingface_hub takes them: a process that dies loses its locks.
Network file systems may have no locks, or grant every lock to everyone: there a lock file counts as held for a day.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from mlxk2.cache import directory, space
from mlxk2.cache.directory import Usage
from mlxk2.checkpoint.files import SAFELY
from mlxk2.names import is_macos_metadata

FOLDER = ".locks"
PULL_LOCK = "pull.lock"  # held by our own `pull` from its first look at the model to its end
ABANDONED_SECONDS = 24 * 60 * 60  # Where no lock says whether its holder lives: no download or copy takes longer.
# What flock answers where there are no locks: of SMB, NFS without locks, and NFS whose lock service is away.
UNSUPPORTED = (errno.EISDIR, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK)

_FLAGS = os.O_RDONLY | SAFELY


class Locks(NamedTuple):
    """The lock files of a model, by their names relative to the hub folder."""

    living: tuple[str, ...]
    stale: tuple[str, ...]


def of_model(hub: int, folder: str) -> Locks:
    """The lock files of the model in a `models--…` folder; `hub` is a handle of the hub folder."""
    found = [(f"{FOLDER}/{folder}/{name}", is_free) for name, _, is_free in _locks(hub, folder)]
    return Locks(
        living=tuple(name for name, is_free in found if not is_free),
        stale=tuple(name for name, is_free in found if is_free),
    )


def count(hub: int, folder: str, locks: Locks, usage: Usage) -> None:
    """Count the room that `clean` would free."""
    with directory.folder(FOLDER, below=hub) as parent:
        if parent is None:
            return
        if not locks.living:
            usage.add(folder, parent)
            return
        with directory.folder(folder, below=parent) as handle:
            if handle is not None:
                for name in locks.stale:
                    usage.add(os.path.basename(name), handle)


def clean(hub: int, folder: str, usage: Usage) -> int:
    """Remove a model's lock files that nobody holds, and count them.

    One that is held stays, whatever is forced: to unlink it would let a second download in beside its holder.
    """
    cleaned = 0
    for name, below, is_free in _locks(hub, folder):
        if is_free:
            usage.add(name, below)
            directory.remove(name, below)
            cleaned += 1
    _remove_macos_metadata(hub, folder, usage)
    with directory.folder(FOLDER, below=hub) as locks:
        if locks is not None:
            _remove_empty(folder, locks, usage)
    return cleaned


@contextmanager
def claimed(hub: int, folder: str) -> Iterator[bool]:
    """Keep `pull` from a model as long as the block runs; False when one is at work already.

    Where the disk is too full for the lock, there is none: no pull can take it either.
    """
    with _made(FOLDER, hub), directory.folder(FOLDER, below=hub) as parent:
        if parent is None:
            yield True  # a link is in its place, behind which nothing of ours is, or the disk is full
            return
        with _made(folder, parent), directory.folder(folder, below=parent) as locks:
            if locks is None:
                yield True
                return
            with _pull_lock(locks) as is_ours:
                yield is_ours


@contextmanager
def _made(name: str, below: int) -> Iterator[None]:
    """Make a folder for as long as the block runs, unless it is there; it stays when something is in it."""
    try:
        os.mkdir(name, dir_fd=below)
    except OSError as error:
        if error.errno not in (errno.EEXIST, *space.FULL):
            raise
        yield
        return
    yield
    with suppress(OSError):
        os.rmdir(name, dir_fd=below)


@contextmanager
def _pull_lock(locks: int) -> Iterator[bool]:
    is_new = PULL_LOCK not in directory.names_in(below=locks)
    try:
        handle = os.open(PULL_LOCK, _FLAGS | os.O_CREAT, 0o664, dir_fd=locks)
    except OSError as error:
        if error.errno not in space.FULL:
            raise
        yield True
        return
    try:
        is_ours = try_lock(handle, PULL_LOCK, locks) is not False
        yield is_ours
        if is_ours and is_new:
            with suppress(FileNotFoundError):
                os.unlink(PULL_LOCK, dir_fd=locks)
    finally:
        os.close(handle)


def try_lock(handle: int, name: str, below: int) -> bool | None:
    """Take the lock of an open file or folder that goes by this name.

    False when another process has it, or something else goes by the name now. None where locks mean nothing.
    """
    if (is_ours := _flock(handle)) is not True:
        return is_ours
    try:
        second = os.open(name, _FLAGS, dir_fd=below)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return False
    try:
        if not os.path.samestat(os.fstat(handle), os.fstat(second)):
            return False
        # Some network file systems grant every lock. There the second handle gets it too.
        return True if _flock(second) is False else None
    finally:
        os.close(second)


def _flock(handle: int) -> bool | None:
    """Ask for a lock: False when it is held by another handle, None where there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
    return True


def is_free(handle: int, name: str, below: int) -> bool:
    """Return whether the lock of an open file or folder is ours now, or is so old that its holder has died."""
    is_ours = try_lock(handle, name, below)
    if is_ours is not None:
        return is_ours
    return time.time() - os.fstat(handle).st_mtime > ABANDONED_SECONDS


def is_held(path: Path) -> bool:
    """Return whether a lock file is held by any process, this one included; never where locks mean nothing."""
    handle = os.open(path, _FLAGS)
    try:
        return _flock(handle) is False
    finally:
        os.close(handle)


def _locks(hub: int, folder: str) -> Iterator[tuple[str, int, bool]]:
    """Of each lock file its name, its folder's handle, and whether nobody held it: then we do, until the next one."""
    with directory.folder(FOLDER, folder, below=hub) as locks:
        if locks is None:
            return
        for name in directory.names_in(below=locks):
            if is_macos_metadata(name):
                continue
            with taken(name, locks) as is_free:
                if is_free is not None:
                    yield name, locks, is_free


@contextmanager
def taken(name: str, below: int) -> Iterator[bool | None]:
    """Take a lock file's lock if it is free, and say whether it was; None for what is no lock file."""
    try:
        handle = os.open(name, _FLAGS, dir_fd=below)
    except PermissionError:
        yield False  # another user's, who may hold it
        return
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            raise
        yield None
        return
    try:
        yield is_free(handle, name, below) if stat.S_ISREG(os.fstat(handle).st_mode) else None
    finally:
        os.close(handle)


def _remove_macos_metadata(hub: int, folder: str, usage: Usage) -> None:
    """Remove what macOS laid among a model's lock files, unless a lock or something else is left there."""
    with directory.folder(FOLDER, folder, below=hub) as locks:
        names = [] if locks is None else directory.names_in(below=locks)
        if locks is not None and all(map(is_macos_metadata, names)):
            for name in names:
                usage.add(name, locks)
                directory.remove(name, locks)


def _remove_empty(folder: str, below: int, usage: Usage) -> None:
    try:
        status = os.stat(folder, dir_fd=below, follow_symlinks=False)
        os.rmdir(folder, dir_fd=below)
    except OSError as error:
        # Nothing there, a link, or a lock that is held: all of these stay as they are.
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
            raise
        return
    usage.add_status(status)
