"""A folder that comes into being whole: built beside its place under a name that tells of it, and renamed at last.

What a killed process left beside it is removed by the next one that builds the same folder. What macOS laid in an empty
folder, such as `.DS_Store`, leaves it empty for us, and is moved into the new one.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mlxk2.cache import scratch
from mlxk2.cache.directory import Directory
from mlxk2.cache.scratch import Scratch
from mlxk2.errors import InvalidTargetError, OperationError, cause
from mlxk2.names import is_macos_metadata

PREFIX = ".mlxk2-clone-"
FINISHED = "model"
_ASIDE = "aside"  # what macOS laid in the target, while the new folder takes its place


def checked(typed: str, hub: str) -> str:
    """The real path of a folder that may be built; InvalidTargetError where that can't or must not be."""
    if not typed.strip() or "\0" in typed:
        raise InvalidTargetError(f"{typed!r} is no folder's name.")
    path = os.path.realpath(typed)
    if _is_below(path, hub):
        raise InvalidTargetError(f"{typed} is in the cache, which a clone never changes; name a folder elsewhere.")
    try:
        _check_existing(typed, path, os.listdir(path))
    except FileNotFoundError:
        return path
    except OSError as error:
        raise InvalidTargetError(f"{typed} can't be the target: {cause(error)}.") from error
    return path


def _is_below(path: str, folder: str) -> bool:
    """Return whether a path leads into a folder, however it is written: a disk may ignore case, or be mounted twice."""
    if not os.path.exists(folder):
        return (path + os.sep).startswith(os.path.realpath(folder) + os.sep)
    steps = [path]
    while steps[-1] != os.path.dirname(steps[-1]):
        steps.append(os.path.dirname(steps[-1]))
    return any(os.path.exists(step) and os.path.samefile(step, folder) for step in steps)


def _check_existing(typed: str, path: str, content: list[str]) -> None:
    if not all(map(is_macos_metadata, content)):
        raise InvalidTargetError(f"{typed} exists and is not empty; name a new or an empty folder.")
    # The new folder takes the place of the empty one, which these can't give up.
    if os.path.ismount(path) or os.path.samefile(path, os.curdir):
        raise InvalidTargetError(f"{typed} is a mount point or the current folder; name a folder in it.")


@contextmanager
def built(path: str) -> Iterator[str]:
    """A scratch folder on the target's disk; what the block leaves in its `model` folder becomes the target.

    If the block fails, everything is as it was. InvalidTargetError when the target was taken meanwhile; OSError for
    faults of the disk.
    """
    parent, name = os.path.split(path)
    # A file's name is limited, so that of the target can't be part of it.
    prefix = f"{PREFIX}{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}-"
    with _folders(parent), Directory.at(parent) as below:
        for old in scratch.abandoned(prefix, below):
            _put_back(old, name)
            _remove(old)
        with scratch.created(prefix, below) as new:
            try:
                folder = os.path.join(parent, new.name)
                _make(os.path.join(folder, FINISHED), path)
                yield folder
                _put_aside(new, name)
                _put_in_place(new, name)
            finally:
                _put_back(new, name)
                _remove(new)


def _remove(old: Scratch) -> None:
    """Remove a scratch folder; OperationError says which one is left."""
    try:
        old.remove()
    except OSError as error:
        message = f"{old.name}, a folder for work in progress beside the target, can't be removed: {cause(error)}."
        raise OperationError(message, hint="Remove it, or clone to the same target again.") from error


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


def _make(folder: str, target: str) -> None:
    """Make a folder with the permissions of the empty one that it will replace."""
    os.mkdir(folder)
    if os.path.isdir(target):
        os.chmod(folder, stat.S_IMODE(os.stat(target).st_mode))


def _put_aside(new: Scratch, name: str) -> None:
    """Move what macOS laid in an empty folder out of it: only over an empty one the new folder can be renamed."""
    with new.parent.open(name) as target:
        litter = [] if target is None else list(filter(is_macos_metadata, target.names()))
        if target is not None and litter:
            new.folder.make(_ASIDE)
            _move_all(litter, target, new.folder, _ASIDE)


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
            with suppress(FileNotFoundError):  # it went with the file whose companion it is
                source.rename(name, folder, name)


def _put_in_place(new: Scratch, name: str) -> None:
    try:
        # Over an empty folder a rename succeeds, over a full one it does not.
        new.folder.rename(FINISHED, new.parent, name)
    except OSError as error:
        raise InvalidTargetError(f"{name} can't be put in its place: {cause(error)}.") from error
