"""Copy a model into a user's folder: build the copy beside the target, then rename it to the target.

If a process is killed, the next process that builds the same folder removes the unfinished copy. A target that contains
only files of macOS, such as `.DS_Store`, counts as empty; these files are moved into the new folder.

Each file is cloned if the file system can share blocks, and copied byte by byte otherwise; the only way to find out is
to try. A clone needs no space and no time. A change to the clone does not change the original.
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

_ASIDE = "aside"  # Holds the files of macOS from the target until the new folder is in its place.
_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_AT_FDCWD = -2  # macOS's sys/fcntl.h


def resolve_target(typed: str, cache_dir: str) -> str:
    """Return the real path of a target folder; raise InvalidTargetError when a copy can't or must not be there."""
    if not typed.strip() or "\0" in typed:
        raise InvalidTargetError(f"{typed!r} is not the name of a folder.")
    path = os.path.realpath(typed)
    above = [path, *map(str, Path(path).parents)]
    # A path can lead into the cache under another name, if the disk ignores case or is mounted twice.
    found = [folder for folder in above if os.path.exists(folder)] if os.path.exists(cache_dir) else []
    if os.path.realpath(cache_dir) in above or any(os.path.samefile(folder, cache_dir) for folder in found):
        raise InvalidTargetError(f"{typed} is in the cache, which a clone never changes; name a folder elsewhere.")
    try:
        if not all(map(is_macos_metadata, os.listdir(path))):
            raise InvalidTargetError(f"{typed} exists and is not empty; name a new or an empty folder.")
        # The new folder replaces the empty one, which is impossible for a mount point and for the current folder.
        if os.path.ismount(path) or os.path.samefile(path, os.curdir):
            raise InvalidTargetError(f"{typed} is a mount point or the current folder; name a folder in it.")
    except FileNotFoundError:
        return path
    except OSError as error:
        raise InvalidTargetError(f"{typed} can't be the target: {cause(error)}.") from error
    return path


@contextmanager
def build(path: str) -> Iterator[str]:
    """Yield a scratch folder on the target's disk; after the block, its subfolder `model` becomes the target.

    If the block fails, the target is unchanged. Raise InvalidTargetError when another process has filled the target in
    the meantime, and OSError when the disk fails.
    """
    parent, name = os.path.split(path)
    # Use a hash, because the target's name in the prefix could make the name too long.
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
    """Make the missing folders of a path; if the block fails, remove them again."""
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
    """Move the files of macOS out of an empty target, then rename the finished folder to the target."""
    with new.parent.open(name) as target:
        litter = [] if target is None else list(filter(is_macos_metadata, target.names()))
        if target is not None and litter:
            new.folder.make(_ASIDE)
            _move_all(litter, target, new.folder, _ASIDE)
    try:
        # A rename replaces an empty folder, and fails if the folder is not empty.
        new.folder.rename(FINISHED, new.parent, name)
    except OSError as error:
        raise InvalidTargetError(f"The copy can't be moved to {name}: {cause(error)}.") from error


def _put_back(scratch: Scratch, name: str) -> None:
    """Move the files of macOS from `aside` into the target, which is the old folder or the new one."""
    with scratch.folder.open(_ASIDE) as aside:
        if aside is not None:
            _move_all(aside.names(), aside, scratch.parent, name)


def _move_all(names: list[str], source: Directory, below: Directory, target: str) -> None:
    with below.open(target) as folder:
        if folder is None:
            return
        for name in names:
            with suppress(FileNotFoundError):  # macOS moves a companion file together with its file.
                source.rename(name, folder, name)


def _remove(old: Scratch) -> None:
    """Remove a scratch folder; raise OperationError, which names it, when it can't be removed."""
    try:
        old.remove()
    except OSError as error:
        message = f"{old.name}, a folder for work in progress beside the target, can't be removed: {cause(error)}."
        raise OperationError(message, hint="Remove it, or clone to the same target again.") from error


def copy_files(files: Sequence[File], folder: str, progress: Progress, *, may_move: bool = False) -> Method:
    """Copy files into an empty folder with the same names, writable by the user; return the method that was used.

    With `may_move`, the originals can be moved instead. Raise OperationError when the disk has no space for plain
    copies or a file changes during the copy, and OSError when the disk fails.
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
    # A file with two names becomes two files, so that the user can edit each one alone.
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
    """Return the path of a file's copy and make its folders; raise OperationError when the path already exists."""
    path = os.path.join(folder, file.name)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        is_taken = os.path.lexists(path)
    except (FileExistsError, NotADirectoryError):
        is_taken = True
    if is_taken:
        raise OperationError(
            f"{file.name!r} can't be copied beside another file of the model: on this disk, both names are the same.",
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
    """Open a file to copy it; raise OperationError when it can't be read."""
    try:
        with open_file(file) as current:
            yield current
    except BrokenFile as error:
        raise OperationError(f"{error}.") from error


if sys.platform == "darwin":
    _fclonefileat = ctypes.CDLL(None, use_errno=True).fclonefileat

    def _clone(file: File, target: str) -> bool:
        """Make a file that shares its blocks; if impossible, leave no file and return False. See clonefile(2)."""
        with _original(file) as source:
            if _fclonefileat(source.descriptor, _AT_FDCWD, os.fsencode(target), 0) != 0:
                return False
        _make_writable(target)
        return True

else:

    def _clone(file: File, target: str) -> bool:
        """Make a file that shares its blocks; if impossible, leave no file and return False. See ioctl_ficlone(2)."""
        with _original(file) as source, open(target, "xb") as copy:
            try:
                fcntl.ioctl(copy, _FICLONE, source.descriptor)
            except OSError:
                # File systems use different error numbers here. If the disk fails, the plain copy will fail too.
                os.unlink(target)
                return False
        return True


def _make_writable(path: str) -> None:
    """Let the user edit a copy of a file that is read-only in the cache."""
    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | stat.S_IRUSR | stat.S_IWUSR)
