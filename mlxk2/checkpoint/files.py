"""Find and read the files of a folder. Links are followed only inside given folders; every read has a size limit.

Other programs change a cache while it is read. A file that was replaced after it was found is found and read again.
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

# A file can be replaced by a pipe or a link after it was found: never wait for a pipe, never follow a link.
SAFE_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
MAX_LINKS = 8
MAX_ATTEMPTS = 8  # To open a file that is replaced again and again.

_PATH_ERRORS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)  # Errors of the path itself, the same for every user.
_UNKNOWN = (0, 0)  # The identity of a file without a known inode.
_DATALESS = 0x40000000  # SF_DATALESS in macOS's sys/stat.h: the bytes are in iCloud.


class BrokenFile(Exception):
    """A file that is damaged or can't be read; as text, its name followed by the problem.

    `is_refused` is true when the operating system does not let the user read the file, which can still be complete.
    """

    def __init__(self, name: str, problem: str, *, is_refused: bool = False) -> None:
        super().__init__(name, problem)
        self.name = name
        self.problem = problem
        self.is_refused = is_refused

    def __str__(self) -> str:
        return f"{self.name} {self.problem}"

    def without_traceback(self) -> BrokenFile:
        """Return a copy without the traceback, which would keep the file's bytes in memory."""
        return BrokenFile(self.name, self.problem, is_refused=self.is_refused)


class File(NamedTuple):
    """A file of a folder.

    `name` is the path relative to the folder, with `/`. `path` is the real path of the bytes, with all links followed,
    and `size` their number. Two files with the same `identity` share their bytes. `blob` is the name of the bytes in
    the cache, or None. A file with a `problem` (dangling, outside, …) can't be read; `is_refused` is true when the
    operating system does not let the user read it. `find_again` finds the file once more.
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
        """Whether macOS has moved the bytes to iCloud; only the user can download them."""
        return self.problem == IN_ICLOUD


class Entry(NamedTuple):
    """A path below a folder: its name relative to the folder, with `/`, and the error if it is an unreadable folder."""

    name: str
    path: str
    problem: str | None = None


class OpenFile(NamedTuple):
    """An open file; `file` has the size that it had when it was opened."""

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
    """Reads folders and never leaves `roots`, wherever links lead. If `roots` is None, links may lead anywhere.

    The roots are real paths, as `os.path.realpath` returns them; `label` names them in messages.
    """

    def __init__(self, roots: tuple[str, ...] | None, label: str = "the cache") -> None:
        self._roots = roots
        self._label = label
        self._real_folders = {root: root for root in roots or ()}

    def contains(self, folder: str) -> bool:
        """Return whether a folder lies inside the roots after all links are followed."""
        return self._is_inside(self._real_folder(folder))

    def files(self, folder: str, leaves_out: Callable[[str], bool] = lambda _: False) -> list[File]:
        """Return the files below a folder, sorted by name, without links to folders and names that it `leaves_out`."""
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
        """Return the file at a path, or None for a link to a folder."""
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
        return broken_file(name, "leads through too many links")

    def _real_folder(self, folder: str) -> str:
        """Return the real path of a folder; look at each folder once, since many files of a snapshot share a folder."""
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
    """Yield the files and links below a folder, and each folder that is not entered, as `name/`.

    `enters` decides by a folder's name whether to enter it. A folder that can't be read is yielded with a problem.
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
    """Open a file; raise BrokenFile when it can't be opened.

    If the file was replaced after it was found, find it again. For example, a blob can become a link to a shared blob.
    """
    current = again = None
    for _ in range(MAX_ATTEMPTS):
        if file.problem:
            raise BrokenFile(file.name, file.problem, is_refused=file.is_refused)
        try:
            current = _open_as_found(file)
        except OSError as error:
            again = _find_again(file)
            # If the file is still the same one, or is gone, a second attempt would fail in the same way.
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
    """Open a file's path; return None when a different file is there now."""
    descriptor = os.open(file.path, os.O_RDONLY | SAFE_FLAGS)
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
            file.name, f"is too large for a file of this name ({file.size:,} bytes, at most {limit:,} are read)"
        )


def _unreadable(file: File, error: OSError) -> BrokenFile:
    return BrokenFile(file.name, f"can't be read ({cause(error)})", is_refused=True)


def _target(path: str, folder: str) -> str | None:
    """Return the target of the link at a path in this real folder, or None when the path is no longer a link."""
    try:
        target = os.readlink(path)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None
    # The folder is a real path, so `..` is the folder above it.
    while target.startswith("../"):
        folder, target = os.path.dirname(folder), target[3:]
    return os.path.join(folder, target)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def broken_file(name: str, problem: str, *, is_refused: bool = False) -> File:
    """Return a File that can't be read because of `problem`."""
    return File(name, "", 0, _UNKNOWN, None, problem, is_refused)


class JsonLimit(NamedTuple):
    """The largest allowed number of bytes and of values in a kind of JSON file; each value takes 50 bytes of memory."""

    bytes: int
    values: int


# A config that lists each expert of a large model has a few hundred thousand bytes.
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

    If the text is only a part of the file, `part` is the beginning of the error message, such as "has a header that ".
    """
    values = sum(map(text.count, (b",", b"[", b"{")))
    if values > limit.values:
        raise BrokenFile(name, f"{part}has too many values to be read ({values:,}, at most {limit.values:,})")
    if len(text) > limit.bytes // 4 and not text.isascii():
        # Python stores a text with one character outside ASCII in up to four bytes for each character.
        size = f"{len(text):,} bytes that are not all ASCII, at most {limit.bytes // 4:,} such bytes are read"
        raise BrokenFile(name, f"{part}is too large for a file of this name ({size})")
    try:
        return json.loads(text.decode(encoding), parse_float=parse_float, parse_constant=str)
    except (ValueError, RecursionError) as error:
        # Chaining the parser's error would keep the whole text in memory.
        reason = reason_of(error).partition(" (char")[0]
        raise BrokenFile(name, f"{part}is not valid JSON ({reason})") from None


def finite(text: str) -> float | str:
    """Return a number, or its text if it is infinite, because JSON output can't represent infinity."""
    number = float(text)
    return number if math.isfinite(number) else text
