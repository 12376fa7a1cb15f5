"""The files of a folder that are to be uploaded: those inside it that no rule ignores."""

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
MAX_LINKS = 40  # As many as Linux follows.

_LABEL = "the folder"


@dataclass(frozen=True)
class Workspace:
    """A folder under the name that the user typed, and its real path, in which everything that is uploaded lies."""

    name: str
    root: str

    @cached_property
    def ignore(self) -> Ignore:
        """The rules for what is not uploaded; raise PushFailedError when the `.hfignore` can't be read."""
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
        """The files to be uploaded, by name; a file that can't be uploaded has a `problem`."""
        entries = sorted(self._walked[0], key=lambda entry: entry.name)
        collisions = names.collisions(entry.name for entry in entries)
        clashes = {name: f"has no place beside {other}: {reason}" for other, name, reason in collisions}
        files = []
        for name, path, problem in entries:
            if problem is not None:
                file = broken_file(name, problem)
            elif not path.endswith(name):
                file = broken_file(name, "has a name that is not UTF-8")
            else:
                file = self._tree.file(name, path) or broken_file(name, "is a link to a folder")
            problem = file.problem or names.problem_of_file(name) or clashes.get(name)
            # Only the cache names files by their hashes: a folder `blobs` of the user's says nothing.
            files.append(broken_file(name, problem) if problem else file._replace(blob=None))
        return tuple(files)

    @property
    def withheld(self) -> list[str]:
        """The files and folders (`name/`), by name, that are not uploaded only because they look like secrets."""
        return self._walked[1]

    def snapshot(self) -> Snapshot:
        """Return the files as those of the model that `show` describes, for the rules of health."""
        return folder_snapshot(self.name).unread(self.files)

    @cached_property
    def _walked(self) -> tuple[list[Entry], list[str]]:
        uploaded, withheld = [], []
        for entry in walk(self.root, enters=lambda name: not self._is_left_out(name, is_folder=True)):
            name, is_folder = entry.name.removesuffix("/"), entry.name.endswith("/")
            if entry.problem or not self._is_left_out(name, is_folder):
                uploaded.append(entry)
            elif self._is_secret(name, is_folder):
                withheld.append(entry.name)
        return uploaded, sorted(withheld)

    def _is_left_out(self, name: str, is_folder: bool) -> bool:
        return self.ignore.matches(name, is_folder) or self._is_secret(name, is_folder)

    def _is_secret(self, name: str, is_folder: bool) -> bool:
        """Return whether a path that is not uploaded looks like a secret, or is a link to one."""
        if self.ignore.matches(name, is_folder):
            return self.ignore.withholds(name, is_folder)
        return self._leads_to_secret(name)

    def _leads_to_secret(self, name: str) -> bool:
        """Return whether this is a link to a secret of the folder that no `!` of the user's takes in by this name."""
        path = os.path.join(self.root, name)
        for _ in range(MAX_LINKS):
            if not os.path.islink(path):
                return False
            target = os.path.join(os.path.dirname(path), os.readlink(path))
            path = os.path.join(os.path.realpath(os.path.dirname(target)), os.path.basename(target))
            if self._tree.contains(path) and self.ignore.withholds(os.path.relpath(path, self.root)):
                return not self.ignore.takes_in(name)
        return False

    @cached_property
    def _tree(self) -> Tree:
        return Tree((self.root,), _LABEL)


def find(name: str) -> Workspace:
    """Return the workspace in a folder that the user named; raise WorkspaceNotFoundError when there is no folder."""
    if not os.path.isdir(name):
        problem = "is not a folder" if os.path.lexists(name) else "does not exist"
        raise WorkspaceNotFoundError(f"The folder {name!r} {problem}.")
    return Workspace(name, os.path.realpath(name))
