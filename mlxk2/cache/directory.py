"""Folders opened by handle: what is done below one can't be led elsewhere by a link that someone lays meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from mlxk2.names import fold, is_one_text

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_MAX_ATTEMPTS = 5
_BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's own


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A handle of the folder at a path, links followed."""
    handle = os.open(path, _FOLDER)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def folder(*names: str, below: int) -> Iterator[int | None]:
    """A handle of a folder below another one; None where any step on the way is missing, a link or no folder."""
    handle = _descend(below, names)
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


def _descend(below: int, names: tuple[str, ...]) -> int | None:
    handle = os.dup(below)
    for name in names:
        try:
            inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=handle)
        except OSError as error:
            if error.errno not in _NO_FOLDER:
                raise
            return None
        finally:
            os.close(handle)
        handle = inner
    return handle


def names_in(*names: str, below: int) -> list[str]:
    """What is in a folder below another one, by name; nothing where `folder` finds none."""
    # A handle that was open before may show what was there then: btrfs lists no entry that is newer than the handle.
    with folder(*names, ".", below=below) as handle:
        return [] if handle is None else sorted(os.listdir(handle))


def name_on_disk(path: str) -> str:
    """Return the name under which the disk keeps what is at a path: another one where the disk ignores case."""
    folder, name = os.path.split(path)
    names = os.listdir(folder)
    if name in names:
        return name
    alike = [other for other in names if fold(other) == fold(name)]
    # Some disks keep each accent in a form of their own.
    return next((other for other in alike if not is_one_text(other, name)), name)


def walk(handle: int) -> Iterator[tuple[str, int]]:
    """Everything below a folder, as a name and a handle of the folder that holds it; links are not entered.

    OSError when a folder can't be read; one that vanishes meanwhile is passed over.
    """
    for _, folders, files, inner in os.fwalk(".", dir_fd=handle, onerror=_fail):
        for name in (*folders, *files):
            yield name, inner


def _fail(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def remove(name: str, below: int) -> None:
    """Remove a file, a link or a folder with all that is in it; links are not followed.

    What vanishes by itself is passed over: on disks that are not macOS's own, a file takes its companion `._name`
    along. All that can be removed is removed before the first error is raised.
    """
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        errors = _remove(name, below)
        # Something may have been laid into a folder after it was listed: by the Finder, for one.
        serious = [error for error in errors if error.errno not in (errno.ENOTEMPTY, errno.EEXIST)]
        if serious or (errors and attempt == _MAX_ATTEMPTS):
            raise (serious or errors)[0]
        if not errors:
            return


def remove_all(names: Iterable[str], below: int) -> int:
    """Remove all of these, as `remove` does, before the first error is raised; return how many there were."""
    errors: list[OSError] = []
    number = 0
    for name in names:
        number += 1
        try:
            remove(name, below)
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return number


def _remove(name: str, below: int) -> list[OSError]:
    """Try to remove, and return the errors."""
    errors: list[OSError] = []

    def note(error: BaseException) -> None:
        if not isinstance(error, OSError):
            raise error
        if not isinstance(error, FileNotFoundError):
            errors.append(error)

    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=below, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=below)
        elif sys.version_info >= (3, 12):
            shutil.rmtree(name, dir_fd=below, onexc=lambda _call, _path, error: note(error))
        else:
            shutil.rmtree(name, dir_fd=below, onerror=lambda _call, _path, info: note(info[1]))
    except OSError as error:
        note(error)
    return errors


class Usage:
    """The room on the disk that comes free when all of what was added goes.

    It is counted in blocks, not in the files' sizes: a sparse or compressed file takes less than its size, a small
    one more, and folders take room too. A file with a further link elsewhere frees nothing.
    """

    def __init__(self) -> None:
        self._links: dict[tuple[int, int], int] = {}
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """How many bytes come free."""
        return self._bytes

    def add(self, name: str, below: int) -> None:
        """Count a file, or a folder with all that is in it; what is not there counts nothing."""
        self._add_entry(name, below)
        with folder(name, below=below) as handle:
            if handle is not None:
                for inner, parent in walk(handle):
                    self._add_entry(inner, parent)

    def _add_entry(self, name: str, below: int) -> None:
        with suppress(FileNotFoundError):
            self.add_status(os.stat(name, dir_fd=below, follow_symlinks=False))

    def add_all(self, handle: int) -> None:
        """Count all that is in a folder, not the folder itself."""
        for name in names_in(below=handle):
            self.add(name, handle)

    def add_status(self, status: os.stat_result) -> None:
        """Count one file, link or folder."""
        inode = (status.st_dev, status.st_ino)
        self._links[inode] = self._links.get(inode, 0) + 1
        # The links of a folder are its subfolders.
        if stat.S_ISDIR(status.st_mode) or self._links[inode] == status.st_nlink:
            self._bytes += status.st_blocks * _BLOCK_BYTES
