"""The room on a disk, asked for before anything is written to it."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Callable

from mlxk2.errors import OperationError
from mlxk2.formatting import human_size

# What the operating system says where it was not asked before, or something else took the room meanwhile.
FULL = (errno.ENOSPC, errno.EDQUOT)

_CORE_FOUNDATION = "/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation"
_KEYS = ("kCFURLVolumeAvailableCapacityForImportantUsageKey", "kCFURLVolumeAvailableCapacityKey")
_SINT64 = 4  # kCFNumberSInt64Type

Ask = Callable[[str], int | None]


def check(
    what: str, needed: int, folder: str | os.PathLike[str], *, gained: int = 0, alternative: str, ask: Ask | None = None
) -> None:
    """OperationError with both numbers when what is needed does not fit on the folder's disk.

    All numbers are bytes; `gained` is what will come free before. `alternative` is what the user may do instead. `ask`
    is as for `available`.
    """
    room = available(folder, ask) + gained
    if needed > room:
        raise OperationError(
            f"Not enough disk space for {what}: {human_size(needed)} needed, {human_size(room)} available.",
            hint=f"Free some space, for instance with `mlxk2 rm`, or {alternative}.",
        )


def available(folder: str | os.PathLike[str], ask: Ask | None = None) -> int:
    """Return how many bytes can be written to a folder's disk.

    macOS also frees what it can get again (caches, files that are in iCloud) when room is needed, which `statvfs` does
    not count. There its blocks are counted in 32 bits, too, so that it says too little of very large disks. `ask`
    returns what macOS would free room for; by default macOS is asked, and elsewhere nothing.
    """
    ask = ask or (_of_macos if sys.platform == "darwin" else _of_none)
    return max(shutil.disk_usage(folder).free, ask(os.fspath(folder)) or 0)


def _of_none(_: str) -> int | None:
    return None


def _of_macos(folder: str) -> int | None:
    """Return the larger of what CoreFoundation says of the volume (CFURL.h); None where it can't be asked."""
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
