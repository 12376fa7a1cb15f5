"""Disk space: check that there is enough before writing, and count what a removal will free."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable
from contextlib import suppress

from mlxk2.cache.directory import Directory
from mlxk2.errors import OperationError
from mlxk2.formatting import human_size

# The errors of a full disk. They occur although `check` ran, when another program fills the disk in the meantime.
FULL = (errno.ENOSPC, errno.EDQUOT)

_CORE_FOUNDATION = "/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation"
_KEYS = ("kCFURLVolumeAvailableCapacityForImportantUsageKey", "kCFURLVolumeAvailableCapacityKey")
_SINT64 = 4  # kCFNumberSInt64Type
_BLOCK_BYTES = 512  # The unit of st_blocks on every file system.

Ask = Callable[[str], int | None]


def check(
    what: str, needed: int, folder: str | os.PathLike[str], *, gained: int = 0, alternative: str, ask: Ask | None = None
) -> None:
    """Raise OperationError, with both numbers, when the folder's disk has less than the needed space.

    `needed` is in bytes, and so is `gained`, the space that becomes free before writing. `alternative` is a suggestion
    to the user, as the end of a sentence. `ask` is as for `available`.
    """
    room = available(folder, ask) + gained
    if needed > room:
        raise OperationError(
            f"Not enough disk space for {what}: {human_size(needed)} needed, {human_size(room)} available.",
            hint=f"Free some space, for instance with `mlxk2 rm`, or {alternative}.",
        )


def available(folder: str | os.PathLike[str], ask: Ask | None = None) -> int:
    """Return how many bytes can be written to a folder's disk.

    When space is needed, macOS deletes data that it can get again (caches, files that are also in iCloud). `statvfs`
    does not count that space, and on macOS it counts blocks in 32 bits, too few for very large disks. `ask` returns the
    bytes that macOS can provide; by default, ask CoreFoundation.
    """
    if ask is None and sys.platform == "darwin":
        ask = _ask_macos
    after_cleaning = ask(os.fspath(folder)) if ask else None
    return max(shutil.disk_usage(folder).free, after_cleaning or 0)


def _ask_macos(folder: str) -> int | None:
    """Return the larger of CoreFoundation's two numbers of free bytes (CFURL.h), or None if it is unavailable."""
    try:
        library = ctypes.CDLL(_CORE_FOUNDATION)
        keys = [ctypes.c_void_p.in_dll(library, key) for key in _KEYS]
    except (OSError, ValueError):
        return None
    pointer, path = ctypes.c_void_p, os.fsencode(folder)
    make, copy = library.CFURLCreateFromFileSystemRepresentation, library.CFURLCopyResourcePropertyForKey
    make.restype, make.argtypes = pointer, (pointer, ctypes.c_char_p, ctypes.c_long, ctypes.c_ubyte)
    copy.restype, copy.argtypes = ctypes.c_ubyte, (pointer, pointer, pointer, pointer)
    number, release = library.CFNumberGetValue, library.CFRelease
    number.restype, number.argtypes = ctypes.c_ubyte, (pointer, ctypes.c_long, pointer)
    release.restype, release.argtypes = None, (pointer,)
    url = make(None, path, len(path), 1)
    if not url:
        return None
    found = []
    for key in keys:
        value, size = ctypes.c_void_p(), ctypes.c_int64()
        if copy(url, key, ctypes.byref(value), None) and value:
            number(value, _SINT64, ctypes.byref(size))
            release(value)
            found.append(size.value)
    release(url)
    return max(found, default=None)


class Usage:
    """Counts the disk space that becomes free when everything that was added is removed.

    The count is in blocks, not in file sizes: a sparse or compressed file takes less space than its size, a small file
    takes more, and folders take space too. A file with a hard link elsewhere frees nothing.
    """

    def __init__(self) -> None:
        self._links: dict[tuple[int, int], int] = {}
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """The number of bytes that become free."""
        return self._bytes

    def add(self, folder: Directory, *place: str) -> None:
        """Count a file, link or folder with its content, at a path below a folder; a missing one counts as 0."""
        with folder.open(*place[:-1]) as parent:
            if parent is None:
                return
            self._add_entry(parent, place[-1])
            with parent.open(place[-1]) as inside:
                for inner, inner_parent in () if inside is None else inside.walk():
                    self._add_entry(inner_parent, inner)

    def _add_entry(self, parent: Directory, name: str) -> None:
        with suppress(FileNotFoundError):
            self.add_status(parent.status(name))

    def add_all(self, folder: Directory) -> None:
        """Count the content of a folder, without the folder itself."""
        for name in folder.names():
            self.add(folder, name)

    def add_status(self, status: os.stat_result) -> None:
        """Count one file, link or folder by its status."""
        inode = (status.st_dev, status.st_ino)
        self._links[inode] = self._links.get(inode, 0) + 1
        # For folders, st_nlink counts the subfolders.
        if stat.S_ISDIR(status.st_mode) or self._links[inode] == status.st_nlink:
            self._bytes += status.st_blocks * _BLOCK_BYTES

    def remove(self, folder: Directory, *place: str) -> None:
        """Count a file, link or folder at a path below a folder, then remove it."""
        self.add(folder, *place)
        with folder.open(*place[:-1]) as parent:
            if parent is not None:
                parent.remove(place[-1])
