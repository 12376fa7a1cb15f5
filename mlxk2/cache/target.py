"""A folder that comes into being whole: built beside its place under a name that tells of it, and renamed at last.

What a killed process left beside it is removed by the next one that builds the same folder.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mlxk2.cache import handles, scratch
from mlxk2.errors import InvalidTargetError

PREFIX = ".mlxk2-clone-"
FINISHED = "model"


def checked(typed: str, hub: str) -> str:
    """The real path of a folder that may be built; InvalidTargetError where that can't or must not be."""
    if not typed.strip() or "\0" in typed:
        raise InvalidTargetError(f"{typed!r} is no folder's name.")
    path = os.path.realpath(typed)
    if (path + os.sep).startswith(os.path.realpath(hub) + os.sep):
        raise InvalidTargetError(f"{typed} is in the cache, which a clone never changes; name a folder elsewhere.")
    try:
        _check_existing(typed, path, os.listdir(path))
    except FileNotFoundError:
        return path
    except OSError as error:
        raise InvalidTargetError(f"{typed} can't be the target: {error.strerror}.") from error
    return path


def _check_existing(typed: str, path: str, content: list[str]) -> None:
    if content:
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
    with _folders(parent), handles.opened(parent) as below:
        for old in scratch.abandoned(prefix, below):
            scratch.remove(old, below)
        with scratch.created(prefix, below) as new:
            try:
                folder = os.path.join(parent, new.name)
                _make(os.path.join(folder, FINISHED), path)
                yield folder
                _put_in_place(os.path.join(new.name, FINISHED), name, below)
            finally:
                scratch.remove(new, below)


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


def _put_in_place(new: str, name: str, below: int) -> None:
    try:
        # Over an empty folder a rename succeeds, over a full one it does not.
        os.rename(new, name, src_dir_fd=below, dst_dir_fd=below)
    except OSError as error:
        raise InvalidTargetError(f"{name} can't be put in its place: {error.strerror}.") from error
