"""Open folders: operations below one never leave it, even if other processes create links at the same time."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from mlxk2.names import fold, is_one_text

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NOT_A_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_MAX_ATTEMPTS = 5


class Directory:
    """An open folder; its context closes it. The methods take names in the folder, and never follow a link.

    `path` is the folder's path when it was opened, for messages and for libraries that need a path.
    """

    __slots__ = ("descriptor", "path")

    def __init__(self, descriptor: int, path: str) -> None:
        self.descriptor = descriptor
        self.path = path

    @classmethod
    def at(cls, path: str) -> Directory:
        """Open the folder at a path; links on the path are followed."""
        return cls(os.open(path, _FOLDER), path)

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    @contextmanager
    def open(self, *names: str) -> Iterator[Directory | None]:
        """Open a folder below this one; yield None when a name on the path is missing, a link, or not a folder."""
        descriptor = self._descend(names)
        if descriptor is None:
            yield None
            return
        with Directory(descriptor, os.path.join(self.path, *names)) as inner:
            yield inner

    def _descend(self, names: Iterable[str]) -> int | None:
        descriptor = os.dup(self.descriptor)
        for name in names:
            try:
                inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError as error:
                if error.errno not in _NOT_A_FOLDER:
                    raise
                return None
            finally:
                os.close(descriptor)
            descriptor = inner
        return descriptor

    def names(self, *below: str) -> list[str]:
        """Return the sorted names in this folder or in one below it; return none where `open` yields None."""
        # Open the folder again: on btrfs, a descriptor lists only entries that existed when it was opened.
        with self.open(*below, ".") as folder:
            return [] if folder is None else sorted(os.listdir(folder.descriptor))

    def walk(self) -> Iterator[tuple[str, Directory]]:
        """Yield everything below this folder, as a name and the folder that contains it; do not enter links.

        Raise OSError when a folder can't be read; skip a folder that another process removes.
        """

        def fail(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        for path, folders, files, descriptor in os.fwalk(".", dir_fd=self.descriptor, onerror=fail):
            inner = Directory(descriptor, os.path.join(self.path, path))
            for name in (*folders, *files):
                yield name, inner

    def has(self, name: str) -> bool:
        """Return whether the folder has an entry of this name; a dangling link counts too."""
        try:
            self.status(name)
        except OSError:
            return False
        return True

    def status(self, name: str) -> os.stat_result:
        """Return the status of a file, a link or a folder."""
        return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)

    def link_target(self, name: str) -> str | None:
        """Return the target of a link as it is written, or None for anything else."""
        try:
            return os.readlink(name, dir_fd=self.descriptor)
        except OSError:
            return None

    def open_file(self, name: str, flags: int, mode: int = 0o600) -> int:
        """Open a file, as `os.open` does, and return its descriptor."""
        return os.open(name, flags, mode, dir_fd=self.descriptor)

    def make(self, name: str) -> None:
        """Make a folder."""
        os.mkdir(name, dir_fd=self.descriptor)

    def rename(self, name: str, to: Directory, new_name: str) -> None:
        """Move a file, a link or a folder into a folder of the same disk."""
        os.rename(name, new_name, src_dir_fd=self.descriptor, dst_dir_fd=to.descriptor)

    def unlink(self, name: str) -> None:
        """Remove a file or a link."""
        os.unlink(name, dir_fd=self.descriptor)

    def remove_empty(self, name: str) -> None:
        """Remove a folder; raise OSError when it is not empty, or not a folder."""
        os.rmdir(name, dir_fd=self.descriptor)

    def remove(self, name: str) -> None:
        """Remove a file, a link, or a folder with its content.

        Remove everything that can be removed, then raise the first error. Ignore entries that are already gone: on some
        disks, macOS removes the companion `._name` together with a file.
        """
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            errors = self._try_to_remove(name)
            # Another process, such as the Finder, can add a file to the folder after it was listed. Then try again.
            serious = [error for error in errors if error.errno not in (errno.ENOTEMPTY, errno.EEXIST)]
            if serious or (errors and attempt == _MAX_ATTEMPTS):
                raise (serious or errors)[0]
            if not errors:
                return

    def _try_to_remove(self, name: str) -> list[OSError]:
        """Remove everything that can be removed, and return the errors."""
        # `list` removes nothing, and this imports the libraries of three compressions.
        from shutil import rmtree  # noqa: PLC0415

        errors: list[OSError] = []

        def note(error: BaseException) -> None:
            if not isinstance(error, OSError):
                raise error
            if not isinstance(error, FileNotFoundError):
                errors.append(error)

        try:
            if not stat.S_ISDIR(self.status(name).st_mode):
                self.unlink(name)
            elif sys.version_info >= (3, 12):
                rmtree(name, dir_fd=self.descriptor, onexc=lambda _call, _path, error: note(error))
            else:
                rmtree(name, dir_fd=self.descriptor, onerror=lambda _call, _path, info: note(info[1]))
        except OSError as error:
            note(error)
        return errors

    def remove_all(self, names: Iterable[str]) -> int:
        """Remove all these entries as `remove` does, then raise the first error; return the number of entries."""
        errors: list[OSError] = []
        number = 0
        for name in names:
            number += 1
            try:
                self.remove(name)
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return number


def name_on_disk(path: str) -> str:
    """Return the name of a path's last part as the disk has it; it can differ in case if the disk ignores case."""
    folder, name = os.path.split(path)
    names = os.listdir(folder)
    if name in names:
        return name
    alike = [other for other in names if fold(other) == fold(name)]
    # Some disks change the encoding of accents, which is not another name.
    return next((other for other in alike if not is_one_text(other, name)), name)
