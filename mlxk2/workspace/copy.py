"""Copies of a model's files: of one piece with the originals where the file system can share blocks, else byte by byte.

Whether it can is found by trying, file by file. A shared copy takes no room and no time, and is the user's own all the
same: what is written to one is not seen in the other.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from mlxk2.cache import space
from mlxk2.checkpoint.files import BrokenFile, File, OpenFile, opened
from mlxk2.errors import OperationError

if TYPE_CHECKING:
    from mlxk2.formatting import Advance, Progress

Method = Literal["apfs_clonefile", "reflink", "copy"]

CHUNK_BYTES = 1 << 22

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_AT_FDCWD = -2  # macOS's sys/fcntl.h


def copy_files(files: Sequence[File], folder: str, progress: Progress, *, may_move: bool = False) -> Method:
    """Copy files into an empty folder, under their names and writable by the user; how it was done.

    With `may_move` the originals are not needed any more. OperationError when the disk has no room for plain copies,
    or a file changes meanwhile; OSError for other faults of the disk.
    """
    done = 0
    for file in files:
        if not _clone(file, _place(file, folder)):
            break
        done += 1
    if files and done == len(files):
        return "apfs_clonefile" if sys.platform == "darwin" else "reflink"
    _copy_plainly(files[done:], folder, progress, may_move)
    return "copy"


def _place(file: File, folder: str) -> str:
    """Where a file's copy will be; the folders on the way are made. OperationError when the place is taken."""
    path = os.path.join(folder, file.name)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        is_taken = os.path.lexists(path)
    except (FileExistsError, NotADirectoryError):
        is_taken = True
    if is_taken:
        raise OperationError(
            f"{file.name!r} can't be copied beside another file of the model: the disk takes their names for one.",
            hint="Clone to another disk.",
        )
    return path


def _copy_plainly(files: Sequence[File], folder: str, progress: Progress, may_move: bool) -> None:
    holders = Counter(file.identity for file in files)
    # Two names of the same bytes become two files: each can be edited alone.
    movable = [file for file in files if may_move and holders[file.identity] == 1]
    copied = [file for file in files if file not in movable]
    total = sum(file.size for file in copied)
    space.check("the copy", total, folder, alternative="clone to another disk")
    with progress("Copying", total) as advance:
        for file in copied:
            _copy(file, _place(file, folder), advance)
    for file in movable:
        path = _place(file, folder)
        os.rename(file.path, path)
        _make_writable(path)


def _copy(file: File, path: str, advance: Advance) -> None:
    copied = 0
    with _original(file) as source, open(path, "xb") as target:
        while chunk := source.read(CHUNK_BYTES, offset=copied):
            target.write(chunk)
            copied += len(chunk)
            advance(len(chunk))
    if copied != source.file.size:
        raise OperationError(f"{file.name} changed while it was copied; try again.")


@contextmanager
def _original(file: File) -> Iterator[OpenFile]:
    """The file to be copied, open; OperationError when it can't be read."""
    try:
        with opened(file) as current:
            yield current
    except BrokenFile as error:
        raise OperationError(f"{error}.") from error


if sys.platform == "darwin":
    _fclonefileat = ctypes.CDLL(None, use_errno=True).fclonefileat

    def _clone(file: File, target: str) -> bool:
        """Share a file's blocks; False where that can't be, which leaves nothing. See clonefile(2)."""
        with _original(file) as source:
            if _fclonefileat(source.descriptor, _AT_FDCWD, os.fsencode(target), 0) != 0:
                return False
        _make_writable(target)
        return True

else:

    def _clone(file: File, target: str) -> bool:
        """Share a file's blocks; False where that can't be, which leaves nothing. See ioctl_ficlone(2)."""
        with _original(file) as source, open(target, "xb") as copy:
            try:
                fcntl.ioctl(copy, _FICLONE, source.descriptor)
            except OSError:
                # Each file system refuses with a number of its own. What is really wrong, the plain copy will meet too.
                os.unlink(target)
                return False
        return True


def _make_writable(path: str) -> None:
    """Let the user edit what in the cache was made read-only."""
    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | stat.S_IRUSR | stat.S_IWUSR)
