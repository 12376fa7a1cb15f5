"""The files of a folder: links followed within bounds, bytes read within limits."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mlxk2.cache.naming import readable

MAX_LINKS = 8


class BrokenFile(Exception):
    """A file that can't be used as what its name says; the text is for people and begins with the file's name."""


class File(NamedTuple):
    """A file of a folder.

    `name` is the path relative to the folder, with `/`. `path` is where the bytes are, all links followed, `size` their
    number, and `identity` tells whether two files share them. `blob` is the name that the cache gave the bytes, where
    there is one. A file with a `problem` (dangling, outside, …) has no bytes to be read.
    """

    name: str
    path: str
    size: int
    identity: tuple[int, int]
    blob: str | None = None
    problem: str | None = None


class Entry(NamedTuple):
    """What stands below a folder: its name relative to it, with `/`, its path, and why a folder can't be entered."""

    name: str
    path: str
    problem: str | None = None


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

    def files(self, folder: str) -> list[File]:
        """All files below a folder, by name; links to folders are not entered."""
        if not self.contains(folder):
            return []
        return sorted(filter(None, map(self._file, walk(folder))), key=lambda file: file.name)

    def _file(self, entry: Entry) -> File | None:
        return broken(entry.name, entry.problem) if entry.problem else self.file(entry.name, entry.path)

    def file(self, name: str, path: str) -> File | None:
        """The file behind a path, or None for a link to a folder."""
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
                    return _found(name, path, status, blob)
                path = _joined(real, os.readlink(path))
                blob = blob or _blob_name(path)
        except FileNotFoundError:
            return broken(name, "is a dangling link")
        except (OSError, ValueError) as error:
            return broken(name, f"can't be read ({getattr(error, 'strerror', None) or error})")
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
            entries = list(os.scandir(folder))
        except OSError as error:
            yield Entry(prefix.rstrip("/") or ".", folder, f"can't be read ({error.strerror})")
            continue
        for entry in entries:
            name, is_folder = prefix + readable(entry.name), entry.is_dir(follow_symlinks=False)
            if leaves_out(name, is_folder):
                continue
            if is_folder:
                pending.append((entry.path, name + "/"))
            else:
                yield Entry(name, entry.path)


def read(file: File, limit: int, offset: int = 0) -> bytes:
    """At most `limit` bytes of a file from `offset`; BrokenFile when it can't be read."""
    if file.problem:
        raise BrokenFile(f"{file.name} {file.problem}")
    # A path may have become something else since it was looked at: never wait for a pipe, never follow a link.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(file.path, flags)
        try:
            return os.pread(descriptor, limit, offset)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BrokenFile(f"{file.name} can't be read ({error.strerror})") from error


def read_whole(file: File, limit: int) -> bytes:
    """All bytes of a file; BrokenFile when it has more than `limit` or can't be read."""
    if file.size > limit:
        raise BrokenFile(f"{file.name} is too large to be what its name says ({file.size} bytes)")
    return read(file, limit)


def _joined(folder: str, target: str) -> str:
    """Where a link in a real folder leads; there the way up is the parent's name."""
    while target.startswith("../"):
        folder, target = os.path.dirname(folder), target[3:]
    return os.path.join(folder, target)


def _found(name: str, path: str, status: os.stat_result, blob: str | None) -> File | None:
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        return broken(name, "is not a regular file")
    return File(name, path, status.st_size, (status.st_dev, status.st_ino), blob)


def _blob_name(path: str) -> str | None:
    folder, name = os.path.split(path)
    return name if os.path.basename(folder) == "blobs" else None


def broken(name: str, problem: str) -> File:
    """A file of which there is only to say why it can't be read."""
    return File(name, "", 0, (0, 0), None, problem)
