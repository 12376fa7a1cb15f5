"""The files of a folder: links followed within bounds, bytes read within limits.

Other programs change a cache while it is read. A file that became something else between two looks is looked at anew.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from mlxk2.errors import IN_ICLOUD, cause
from mlxk2.names import readable

# A path may have become something else since it was looked at: never wait for a pipe, never follow a link.
SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
MAX_LINKS = 8
MAX_LOOKS = 8  # at a file that is another one at each look

_OF_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)  # the path itself is at fault, for every user
_UNKNOWN = (0, 0)  # the identity of a file that was not looked at
_DATALESS = 0x40000000  # SF_DATALESS of macOS's sys/stat.h: the bytes are in iCloud


class BrokenFile(Exception):
    """A file that can't be used as what its name says; the text is for people and begins with the file's name."""


class File(NamedTuple):
    """A file of a folder.

    `name` is the path relative to the folder, with `/`. `path` is where the bytes are, all links followed, `size` their
    number, and `identity` tells whether two files share them. `blob` is the name that the cache gave the bytes, where
    there is one. A file with a `problem` (dangling, outside, …) has no bytes to be read; it `is_refused` when the
    operating system does not let the user see it. `find_again` looks for the file once more.
    """

    name: str
    path: str
    size: int
    identity: tuple[int, int]
    blob: str | None = None
    problem: str | None = None
    is_refused: bool = False
    find_again: Callable[[], File | None] | None = None


class Entry(NamedTuple):
    """What stands below a folder: its name relative to it, with `/`, its path, and why a folder can't be entered."""

    name: str
    path: str
    problem: str | None = None


class OpenFile(NamedTuple):
    """A file that is open, as it was found when it was opened."""

    file: File
    descriptor: int

    def read(self, limit: int, offset: int = 0) -> bytes:
        """Return at most `limit` bytes from `offset`; raise BrokenFile when they can't be read."""
        end = min(offset + limit, self.file.size)
        parts = []
        try:
            while offset < end and (part := os.pread(self.descriptor, end - offset, offset)):
                parts.append(part)
                offset += len(part)
        except OSError as error:
            raise _unreadable(self.file, error) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Tree:
    """Reads folders without ever leaving `roots`, by whatever links; without roots, links may lead anywhere.

    The roots are real paths, as `os.path.realpath` gives them; `place` is what people call them.
    """

    def __init__(self, roots: tuple[str, ...] | None, place: str = "the cache") -> None:
        self._roots = roots
        self._place = place
        self._real_folders = {root: root for root in roots or ()}

    def contains(self, folder: str) -> bool:
        """Whether a folder, all links followed, lies inside the roots."""
        return self._is_inside(self._real_folder(folder))

    def files(self, folder: str, leaves_out: Callable[[str], bool] = lambda _: False) -> list[File]:
        """All files below a folder, by name, but for those it `leaves_out`; links to folders are not entered."""
        if not self.contains(folder):
            return []
        entries = walk(folder, lambda name, _: leaves_out(name))
        return sorted(filter(None, map(self._file, entries)), key=lambda file: file.name)

    def _file(self, entry: Entry) -> File | None:
        if entry.problem:
            return broken(entry.name, entry.problem, is_refused=True)
        return self.file(entry.name, entry.path)

    def file(self, name: str, path: str) -> File | None:
        """The file behind a path, or None for a link to a folder."""
        find_again = partial(self.file, name, path)
        blob = None
        try:
            for _ in range(MAX_LINKS):
                folder, base = os.path.split(path)
                real = self._real_folder(folder)
                if not self._is_inside(real):
                    return broken(name, f"is a link that leads outside {self._place}")
                path = os.path.join(real, base)
                status = os.lstat(path)
                if not stat.S_ISLNK(status.st_mode):
                    return _found(name, path, status, blob, find_again)
                if target := _target(path):
                    path = _joined(real, target)
                    blob = blob or _blob_name(path)
        except FileNotFoundError:
            return broken(name, "is a dangling link")
        except OSError as error:
            return broken(name, f"can't be read ({cause(error)})", is_refused=error.errno not in _OF_NAMES)
        except ValueError as error:
            return broken(name, f"can't be read ({error})")
        return broken(name, "is a link without an end")

    def _real_folder(self, folder: str) -> str:
        """As `os.path.realpath`, but each folder is looked at once: a snapshot's files share theirs."""
        if folder not in self._real_folders:
            parent, base = os.path.split(folder)
            path = os.path.join(self._real_folders.get(parent, parent), base)
            is_plain = parent in self._real_folders and base not in ("", ".", "..") and not os.path.islink(path)
            self._real_folders[folder] = path if is_plain else os.path.realpath(path)
        return self._real_folders[folder]

    def _is_inside(self, real: str) -> bool:
        if self._roots is None:
            return True
        return any(real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in self._roots)


def walk(folder: str, leaves_out: Callable[[str, bool], bool] = lambda *_: False) -> Iterator[Entry]:
    """All that stands below a folder, less the folders; links are not entered.

    `leaves_out` is asked with a name and whether it is a folder's, which is not entered then.
    """
    pending = [(folder, "")]
    while pending:
        folder, prefix = pending.pop()
        try:
            found = [(entry, entry.is_dir(follow_symlinks=False)) for entry in os.scandir(folder)]
        except OSError as error:
            yield Entry(prefix.rstrip("/") or ".", folder, f"can't be read ({cause(error)})")
            continue
        for entry, is_folder in found:
            name = prefix + readable(entry.name)
            if leaves_out(name, is_folder):
                continue
            if is_folder:
                pending.append((entry.path, name + "/"))
            else:
                yield Entry(name, entry.path)


@contextmanager
def opened(file: File) -> Iterator[OpenFile]:
    """Open a file as what it was found to be; BrokenFile when it can't be opened.

    One that is another file by now, as a blob that became a link into the store of all repos, is looked at anew.
    """
    current = _open(file)
    try:
        yield current
    finally:
        os.close(current.descriptor)


def _open(file: File) -> OpenFile:
    for _ in range(MAX_LOOKS):
        if file.problem:
            raise BrokenFile(f"{file.name} {file.problem}")
        try:
            if current := _opened_as_found(file):
                return current
        except OSError as error:
            again = _find_again(file)
            # Nothing has changed, or what was there is gone: then this is what is to be said.
            if again is None or again.problem or (again.path, again.identity) == (file.path, file.identity):
                raise _unreadable(file, error) from error
        else:
            again = _find_again(file)
        if again is None:
            break
        file = again
    raise BrokenFile(f"{file.name} changes while it is read; try again")


def _opened_as_found(file: File) -> OpenFile | None:
    """Open a file's path; None when another file is there by now."""
    descriptor = os.open(file.path, os.O_RDONLY | SAFELY)
    try:
        status = os.fstat(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    if not stat.S_ISREG(status.st_mode) or file.identity not in (_UNKNOWN, _identity(status)):
        os.close(descriptor)
        return None
    return OpenFile(file._replace(size=status.st_size), descriptor)


def _find_again(file: File) -> File | None:
    again = file.find_again() if file.find_again else None
    return again and again._replace(name=file.name, blob=file.blob)


def read(file: File, limit: int, offset: int = 0) -> bytes:
    """Return at most `limit` bytes of a file from `offset`; raise BrokenFile when it can't be read."""
    with opened(file) as current:
        return current.read(limit, offset)


def read_whole(file: File, limit: int) -> bytes:
    """Return all bytes of a file; raise BrokenFile when it has more than `limit` or can't be read."""
    with opened(file) as current:
        check_size(current.file, limit)
        return current.read(limit)


def check_size(file: File, limit: int) -> None:
    """Raise BrokenFile when a file has more bytes than are read of one with its name."""
    if file.size > limit:
        raise BrokenFile(
            f"{file.name} is too large to be what its name says ({file.size:,} bytes, at most {limit:,} are read)"
        )


def _unreadable(file: File, error: OSError) -> BrokenFile:
    return BrokenFile(f"{file.name} can't be read ({cause(error)})")


def _target(path: str) -> str | None:
    """Where a link leads; None when it is no link any more."""
    try:
        return os.readlink(path)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None


def _joined(folder: str, target: str) -> str:
    """Where a link in a real folder leads; there the way up is the parent's name."""
    while target.startswith("../"):
        folder, target = os.path.dirname(folder), target[3:]
    return os.path.join(folder, target)


def _found(
    name: str, path: str, status: os.stat_result, blob: str | None, find_again: Callable[[], File | None]
) -> File | None:
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        return broken(name, "is not a regular file")
    if getattr(status, "st_flags", 0) & _DATALESS:
        return broken(name, IN_ICLOUD, is_refused=True)
    return File(name, path, status.st_size, _identity(status), blob, find_again=find_again)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _blob_name(path: str) -> str | None:
    folder, name = os.path.split(path)
    return name if os.path.basename(folder) == "blobs" else None


def broken(name: str, problem: str, *, is_refused: bool = False) -> File:
    """A file of which there is only to say why it can't be read."""
    return File(name, "", 0, _UNKNOWN, None, problem, is_refused)
