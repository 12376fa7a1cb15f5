"""A folder of the user's that becomes a copy of a model: built beside its place, and put there with one rename.

What a killed process left beside the folder is removed by the next process that builds the same folder. What macOS
laid in an empty folder, such as `.DS_Store`, leaves it empty for us, and is moved into the new one.

Each file is cloned where the file system can share blocks, and copied byte by byte elsewhere; whether it can is found
by trying. A clone takes no space and no time, and is the user's own: what is written to one is not seen in the other.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlxk2.cache import scratch, space
from mlxk2.cache.directory import Directory
from mlxk2.cache.scratch import Scratch
from mlxk2.checkpoint.files import BrokenFile, File, OpenFile, open_file
from mlxk2.errors import InvalidTargetError, OperationError, cause
from mlxk2.names import is_macos_metadata

if TYPE_CHECKING:
    from mlxk2.formatting import Advance, Progress

Method = Literal["apfs_clonefile", "reflink", "copy"]

PREFIX = ".mlxk2-clone-"
FINISHED = "model"
CHUNK_BYTES = 1 << 22

_ASIDE = "aside"  # What macOS laid in the target, while the new folder takes its place.
_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_AT_FDCWD = -2  # macOS's sys/fcntl.h


def resolve_target(typed: str, cache_dir: str) -> str:
    """Return the real path of a folder that may be built; raise InvalidTargetError where it can't or must not be."""
    if not typed.strip() or "\0" in typed:
        raise InvalidTargetError(f"{typed!r} is no folder's name.")
    path = os.path.realpath(typed)
    above = [path, *map(str, Path(path).parents)]
    # A path may also lead into the cache under another name: a disk may ignore case, or be mounted twice.
    found = [folder for folder in above if os.path.exists(folder)] if os.path.exists(cache_dir) else []
    if os.path.realpath(cache_dir) in above or any(os.path.samefile(folder, cache_dir) for folder in found):
        raise InvalidTargetError(f"{typed} is in the cache, which a clone never changes; name a folder elsewhere.")
    try:
        if not all(map(is_macos_metadata, os.listdir(path))):
            raise InvalidTargetError(f"{typed} exists and is not empty; name a new or an empty folder.")
        # The new folder takes the place of the empty one, which these can't give up.
        if os.path.ismount(path) or os.path.samefile(path, os.curdir):
            raise InvalidTargetError(f"{typed} is a mount point or the current folder; name a folder in it.")
    except FileNotFoundError:
        return path
    except OSError as error:
        raise InvalidTargetError(f"{typed} can't be the target: {cause(error)}.") from error
    return path


@contextmanager
def build(path: str) -> Iterator[str]:
    """Yield a scratch folder on the target's disk; what the block leaves in its `model` folder becomes the target.

    If the block fails, everything is as it was. Raise InvalidTargetError when the target was taken in that time, and
    OSError for faults of the disk.
    """
    parent, name = os.path.split(path)
    # A file's name is limited, so that of the target can't be part of it.
    prefix = f"{PREFIX}{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}-"
    with _folders(parent), Directory.at(parent) as below:
        for old in scratch.find_abandoned(below, prefix):
            _put_back(old, name)
            _remove(old)
        with scratch.create(below, prefix) as new:
            try:
                folder = os.path.join(parent, new.name)
                finished = os.path.join(folder, FINISHED)
                os.mkdir(finished)
                if os.path.isdir(path):
                    os.chmod(finished, stat.S_IMODE(os.stat(path).st_mode))
                yield folder
                _put_in_place(new, name)
            finally:
                _put_back(new, name)
                _remove(new)


@contextmanager
def _folders(path: str) -> Iterator[None]:
    """Make the folders of a path; if the block fails, those that were made are removed."""
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    try:
        for folder in reversed(missing):
            with suppress(FileExistsError):
                os.mkdir(folder)
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                os.rmdir(folder)
        raise


def _put_in_place(new: Scratch, name: str) -> None:
    """Rename the finished folder to the target, once what macOS laid in an empty target is out of it."""
    with new.parent.open(name) as target:
        litter = [] if target is None else list(filter(is_macos_metadata, target.names()))
        if target is not None and litter:
            new.folder.make(_ASIDE)
            _move_all(litter, target, new.folder, _ASIDE)
    try:
        # Over an empty folder a rename succeeds, over a full one it does not.
        new.folder.rename(FINISHED, new.parent, name)
    except OSError as error:
        raise InvalidTargetError(f"{name} can't be put in its place: {cause(error)}.") from error


def _put_back(scratch: Scratch, name: str) -> None:
    """Move what was put aside into the target, the old folder or the new one."""
    with scratch.folder.open(_ASIDE) as aside:
        if aside is not None:
            _move_all(aside.names(), aside, scratch.parent, name)


def _move_all(names: list[str], source: Directory, below: Directory, target: str) -> None:
    with below.open(target) as folder:
        if folder is None:
            return
        for name in names:
            with suppress(FileNotFoundError):  # It went with the file whose companion it is.
                source.rename(name, folder, name)


def _remove(old: Scratch) -> None:
    """Remove a scratch folder; raise OperationError, which names it, when it can't be removed."""
    try:
        old.remove()
    except OSError as error:
        message = f"{old.name}, a folder for work in progress beside the target, can't be removed: {cause(error)}."
        raise OperationError(message, hint="Remove it, or clone to the same target again.") from error


def copy_files(files: Sequence[File], folder: str, progress: Progress, *, may_move: bool = False) -> Method:
    """Copy files into an empty folder, under their names and writable by the user; return how it was done.

    With `may_move` the originals are not needed any more. Raise OperationError when the disk has no room for plain
    copies, or a file changes in that time; OSError for other faults of the disk.
    """
    cloned = 0
    for file in files:
        if not _clone(file, _prepare_path(file, folder)):
            break
        cloned += 1
    if files and cloned == len(files):
        return "apfs_clonefile" if sys.platform == "darwin" else "reflink"
    rest = files[cloned:]
    names_of = Counter(file.identity for file in rest)
    # Two names of the same bytes become two files: each can be edited alone.
    moved = [file for file in rest if may_move and names_of[file.identity] == 1]
    copied = [file for file in rest if file not in moved]
    total = sum(file.size for file in copied)
    space.check("the copy", total, folder, alternative="clone to another disk")
    with progress("Copying", total) as advance:
        for file in copied:
            _copy(file, _prepare_path(file, folder), advance)
    for file in moved:
        path = _prepare_path(file, folder)
        os.rename(file.path, path)
        _make_writable(path)
    return "copy"


def _prepare_path(file: File, folder: str) -> str:
    """Return where a file's copy will be, and make the folders on the way; raise OperationError when it is taken."""
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
    """Open the file to be copied; raise OperationError when it can't be read."""
    try:
        with open_file(file) as current:
            yield current
    except BrokenFile as error:
        raise OperationError(f"{error}.") from error


if sys.platform == "darwin":
    _fclonefileat = ctypes.CDLL(None, use_errno=True).fclonefileat

    def _clone(file: File, target: str) -> bool:
        """Share a file's blocks; return False where that can't be, which leaves nothing. See clonefile(2)."""
        with _original(file) as source:
            if _fclonefileat(source.descriptor, _AT_FDCWD, os.fsencode(target), 0) != 0:
                return False
        _make_writable(target)
        return True

else:

    def _clone(file: File, target: str) -> bool:
        """Share a file's blocks; return False where that can't be, which leaves nothing. See ioctl_ficlone(2)."""
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
