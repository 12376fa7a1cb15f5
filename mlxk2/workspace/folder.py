"""The files of a folder that a push uploads: all files in it that no rule ignores."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

from mlxk2 import names
from mlxk2.cache.store import folder_snapshot
from mlxk2.checkpoint.files import BrokenFile, Entry, File, Tree, broken_file, read_whole, walk
from mlxk2.checkpoint.snapshot import Snapshot
from mlxk2.errors import PushFailedError, WorkspaceNotFoundError
from mlxk2.workspace.ignore import IGNORE_FILE, Ignore

MAX_IGNORE_BYTES = 1 << 20
MAX_LINKS = 40  # The limit of Linux.

_LABEL = "the folder"


@dataclass(frozen=True)
class Workspace:
    """A folder: its name as the user typed it, and its real path. No file outside it is uploaded."""

    name: str
    root: str

    @cached_property
    def ignore(self) -> Ignore:
        """The rules that exclude files from the upload; raise PushFailedError when `.hfignore` can't be read."""
        path = os.path.join(self.root, IGNORE_FILE)
        if not os.path.lexists(path):
            return Ignore.of("")
        file = self._tree.file(IGNORE_FILE, path) or broken_file(IGNORE_FILE, "is a link to a folder")
        try:
            return Ignore.of(read_whole(file, MAX_IGNORE_BYTES).decode("utf-8-sig", "replace"))
        except BrokenFile as error:
            raise PushFailedError(f"{error}.") from error

    @cached_property
    def files(self) -> tuple[File, ...]:
        """The files to upload, sorted by name; a file that can't be uploaded has a `problem`."""
        entries = sorted(self._entries[0], key=lambda entry: entry.name)
        collisions = names.collisions(entry.name for entry in entries)
        clashes = {name: f"can't be in one folder with {other}: {reason}" for other, name, reason in collisions}
        files = []
        for name, path, problem in entries:
            if problem is not None:
                file = broken_file(name, problem)
            elif not path.endswith(name):
                file = broken_file(name, "has a name that is not UTF-8")
            else:
                file = self._tree.file(name, path) or broken_file(name, "is a link to a folder")
            problem = file.problem or names.problem_of_file(name) or clashes.get(name)
            # Only the cache names files by hashes; a user's folder with the name `blobs` has no such meaning.
            files.append(broken_file(name, problem) if problem else file._replace(blob=None))
        return tuple(files)

    @property
    def secrets(self) -> list[str]:
        """The sorted files and folders (`name/`) that are excluded from the upload because they look like secrets."""
        return self._entries[1]

    def snapshot(self) -> Snapshot:
        """Return a snapshot with the files to upload, for the rules of health."""
        return folder_snapshot(self.name).reset(self.files)

    @cached_property
    def _entries(self) -> tuple[list[Entry], list[str]]:
        uploaded, secrets = [], []
        for entry in walk(self.root, enters=lambda name: not self._is_left_out(name, is_folder=True)):
            name, is_folder = entry.name.removesuffix("/"), entry.name.endswith("/")
            if entry.problem or not self._is_left_out(name, is_folder):
                uploaded.append(entry)
            elif self._is_secret(name, is_folder):
                secrets.append(entry.name)
        return uploaded, sorted(secrets)

    def _is_left_out(self, name: str, is_folder: bool) -> bool:
        return self.ignore.matches(name, is_folder) or self._is_secret(name, is_folder)

    def _is_secret(self, name: str, is_folder: bool) -> bool:
        """Return whether a path that is not uploaded is excluded as a secret or as a link to a secret."""
        if self.ignore.matches(name, is_folder):
            return self.ignore.is_secret(name, is_folder)
        return self._leads_to_secret(name)

    def _leads_to_secret(self, name: str) -> bool:
        """Return whether the path is a link to a secret in the folder, and no `!` of the user includes the link."""
        path = os.path.join(self.root, name)
        for _ in range(MAX_LINKS):
            if not os.path.islink(path):
                return False
            target = os.path.join(os.path.dirname(path), os.readlink(path))
            path = os.path.join(os.path.realpath(os.path.dirname(target)), os.path.basename(target))
            if self._tree.contains(path) and self.ignore.is_secret(os.path.relpath(path, self.root)):
                return not self.ignore.includes(name)
        return False

    @cached_property
    def _tree(self) -> Tree:
        return Tree((self.root,), _LABEL)


def find(name: str) -> Workspace:
    """Return the workspace of a user's folder; raise WorkspaceNotFoundError when the folder does not exist."""
    if not os.path.isdir(name):
        problem = "is not a folder" if os.path.lexists(name) else "does not exist"
        raise WorkspaceNotFoundError(f"The folder {name!r} {problem}.")
    return Workspace(name, os.path.realpath(name))
