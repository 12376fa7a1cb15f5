"""The files of a folder: links are followed within bounds, and bytes and JSON are read within limits.

Other programs change a cache while it is read. A file that became another one between two looks is looked at again.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from mlxk2.errors import IN_ICLOUD, cause
from mlxk2.formatting import reason_of
from mlxk2.names import readable

# A path may have changed since it was looked at: never wait for a pipe, never follow a link.
SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
MAX_LINKS = 8
MAX_LOOKS = 8  # At a file that is another one at each look.

_PATH_ERRORS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)  # The path itself is wrong, for every user.
_UNKNOWN = (0, 0)  # The identity of a file that was not looked at.
_DATALESS = 0x40000000  # SF_DATALESS of macOS's sys/stat.h: the bytes are in iCloud


class BrokenFile(Exception):
    """A file that is not what its name says; the text for people is its name, followed by the problem.

    It `is_refused` when the operating system does not let the user read it, so that it may well be complete.
    """

    def __init__(self, name: str, problem: str, *, is_refused: bool = False) -> None:
        super().__init__(name, problem)
        self.name = name
        self.problem = problem
        self.is_refused = is_refused

    def __str__(self) -> str:
        return f"{self.name} {self.problem}"

    def without_traceback(self) -> BrokenFile:
        """Return the same error without its traceback, which would keep in memory what was read."""
        return BrokenFile(self.name, self.problem, is_refused=self.is_refused)


class File(NamedTuple):
    """A file of a folder.

    `name` is the path relative to the folder, with `/`. `path` is where the bytes are, all links followed, `size` their
    number; two files with one `identity` share them. `blob` is the name that the cache gave the bytes, or None. A file
    with a `problem` (dangling, outside, …) can't be read; it `is_refused` when the operating system does not let the
    user see it. `find_again` looks for the file once more.
    """

    name: str
    path: str
    size: int
    identity: tuple[int, int]
    blob: str | None = None
    problem: str | None = None
    is_refused: bool = False
    find_again: Callable[[], File | None] | None = None

    @property
    def is_in_icloud(self) -> bool:
        """Whether macOS has moved the bytes into iCloud, from where only the user can get them."""
        return self.problem == IN_ICLOUD


class Entry(NamedTuple):
    """A path below a folder: its name relative to the folder, with `/`, and why a folder can't be entered."""

    name: str
    path: str
    problem: str | None = None


class OpenFile(NamedTuple):
    """An open file, as it was when it was opened."""

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
    """Reads folders without ever leaving `roots`, wherever links lead; with None, links may lead anywhere.

    The roots are real paths, as `os.path.realpath` gives them; `label` names them in messages.
    """

    def __init__(self, roots: tuple[str, ...] | None, label: str = "the cache") -> None:
        self._roots = roots
        self._label = label
        self._real_folders = {root: root for root in roots or ()}

    def contains(self, folder: str) -> bool:
        """Return whether a folder, all links followed, lies inside the roots."""
        return self._is_inside(self._real_folder(folder))

    def files(self, folder: str, leaves_out: Callable[[str], bool] = lambda _: False) -> list[File]:
        """Return all files below a folder, by name, except those it `leaves_out`; links to folders are not entered."""
        files = []
        entries = walk(folder, lambda name: not leaves_out(name)) if self.contains(folder) else ()
        for name, path, problem in entries:
            if leaves_out(name):
                continue
            file = broken_file(name, problem, is_refused=True) if problem else self.file(name, path)
            if file is not None:
                files.append(file)
        return sorted(files, key=lambda file: file.name)

    def file(self, name: str, path: str) -> File | None:
        """Return the file behind a path, or None for a link to a folder."""
        find_again = partial(self.file, name, path)
        blob = None
        try:
            for _ in range(MAX_LINKS):
                folder, base = os.path.split(path)
                real = self._real_folder(folder)
                if not self._is_inside(real):
                    return broken_file(name, f"is a link that leads outside {self._label}")
                path = os.path.join(real, base)
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode):
                    if getattr(status, "st_flags", 0) & _DATALESS:
                        return broken_file(name, IN_ICLOUD, is_refused=True)
                    return File(name, path, status.st_size, _identity(status), blob, find_again=find_again)
                if not stat.S_ISLNK(status.st_mode):
                    return None if stat.S_ISDIR(status.st_mode) else broken_file(name, "is not a regular file")
                if target := _target(path, real):
                    path = target
                    above, base = os.path.split(path)
                    if blob is None and os.path.basename(above) == "blobs":
                        blob = base
        except FileNotFoundError:
            return broken_file(name, "is a dangling link")
        except OSError as error:
            return broken_file(name, f"can't be read ({cause(error)})", is_refused=error.errno not in _PATH_ERRORS)
        except ValueError as error:
            return broken_file(name, f"can't be read ({error})")
        return broken_file(name, "is a link without an end")

    def _real_folder(self, folder: str) -> str:
        """Do what `os.path.realpath` does, and look at each folder once: many files of a snapshot share a folder."""
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


def walk(folder: str, enters: Callable[[str], bool]) -> Iterator[Entry]:
    """Yield the files and links below a folder, and the folders that are not entered, as `name/`.

    `enters` returns whether a folder is entered, by its name. A folder that can't be read is yielded with a problem.
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
            if not is_folder:
                yield Entry(name, entry.path)
            elif enters(name):
                pending.append((entry.path, name + "/"))
            else:
                yield Entry(name + "/", entry.path)


@contextmanager
def open_file(file: File) -> Iterator[OpenFile]:
    """Open a file as it was found; raise BrokenFile when it can't be opened.

    A file that is another one by now, such as a blob that became a link into the store of all repos, is looked for
    again.
    """
    current = again = None
    for _ in range(MAX_LOOKS):
        if file.problem:
            raise BrokenFile(file.name, file.problem, is_refused=file.is_refused)
        try:
            current = _open_as_found(file)
        except OSError as error:
            again = _find_again(file)
            # When the file has not changed, or is gone, the first error is the cause.
            if again is None or again.problem or (again.path, again.identity) == (file.path, file.identity):
                raise _unreadable(file, error) from error
        else:
            again = None if current else _find_again(file)
        if again is None:
            break
        file = again
    if current is None:
        raise BrokenFile(file.name, "changes while it is read; try again")
    try:
        yield current
    finally:
        os.close(current.descriptor)


def _open_as_found(file: File) -> OpenFile | None:
    """Open a file's path; return None when another file is there by now."""
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
    with open_file(file) as current:
        return current.read(limit, offset)


def read_whole(file: File, limit: int) -> bytes:
    """Return all bytes of a file; raise BrokenFile when it has more than `limit` or can't be read."""
    with open_file(file) as current:
        check_size(current.file, limit)
        return current.read(limit)


def check_size(file: File, limit: int) -> None:
    """Raise BrokenFile when a file has more than `limit` bytes."""
    if file.size > limit:
        raise BrokenFile(
            file.name, f"is too large to be what its name says ({file.size:,} bytes, at most {limit:,} are read)"
        )


def _unreadable(file: File, error: OSError) -> BrokenFile:
    return BrokenFile(file.name, f"can't be read ({cause(error)})", is_refused=True)


def _target(path: str, folder: str) -> str | None:
    """Return where the link at a path in this real folder leads; None when it is no link any more."""
    try:
        target = os.readlink(path)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None
    # The folder is a real path, so that one step up is its parent's name.
    while target.startswith("../"):
        folder, target = os.path.dirname(folder), target[3:]
    return os.path.join(folder, target)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def broken_file(name: str, problem: str, *, is_refused: bool = False) -> File:
    """Return a file that can't be read, with the reason."""
    return File(name, "", 0, _UNKNOWN, None, problem, is_refused)


class JsonLimit(NamedTuple):
    """How many bytes a kind of JSON file may have, and how many values, since a value takes 50 bytes of memory."""

    bytes: int
    values: int


# Configs that name each expert of a large model have a few hundred thousand bytes.
CONFIG_LIMIT = JsonLimit(bytes=1 << 22, values=200_000)
# An index has a line of 100 bytes for each tensor: 200,000 of them in a model of a trillion weights.
INDEX_LIMIT = JsonLimit(bytes=1 << 26, values=700_000)
# Headers in the usual form are not parsed; of the others, the largest have some ten thousand tensors of eleven values.
HEADER_LIMIT = JsonLimit(bytes=1 << 26, values=1_000_000)


def parse_json(
    name: str,
    text: bytes,
    limit: JsonLimit,
    *,
    part: str = "",
    encoding: str = "utf-8",
    parse_float: Callable[[str], object] = float,
) -> object:
    """Return the value of a file's JSON text; raise BrokenFile when it is invalid or too large.

    Where the text is only a part of the file, `part` begins the words about it: "has a header that ".
    """
    values = sum(map(text.count, (b",", b"[", b"{")))
    if values > limit.values:
        raise BrokenFile(name, f"{part}has too many values to be read ({values:,}, at most {limit.values:,})")
    if len(text) > limit.bytes // 4 and not text.isascii():
        # One character that is not ASCII makes a text take up to four bytes for each character.
        size = f"{len(text):,} bytes that are not all ASCII, at most {limit.bytes // 4:,} of such are read"
        raise BrokenFile(name, f"{part}is too large to be what its name says ({size})")
    try:
        return json.loads(text.decode(encoding), parse_float=parse_float, parse_constant=str)
    except (ValueError, RecursionError) as error:
        # As the cause, the parser's error would keep the text in memory; its words do not.
        reason = reason_of(error).partition(" (char")[0]
        raise BrokenFile(name, f"{part}is not valid JSON ({reason})") from None


def finite(text: str) -> float | str:
    """Return a number, or its text where it is infinite: configs have such numbers, which JSON can't write."""
    number = float(text)
    return number if math.isfinite(number) else text
