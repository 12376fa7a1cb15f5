"""The files of a folder that are to be uploaded: those inside it that no rule ignores."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

from mlxk2 import names
from mlxk2.cache.store import folder_snapshot
from mlxk2.checkpoint.files import BrokenFile, Entry, File, Tree, broken, read_whole, walk
from mlxk2.checkpoint.snapshot import Contents
from mlxk2.errors import PushFailedError, WorkspaceNotFoundError
from mlxk2.workspace.ignore import IGNORE_FILE, Ignore

MAX_IGNORE_BYTES = 1 << 20
MAX_LINKS = 40  # As many as Linux follows.

_PLACE = "the folder"


@dataclass(frozen=True)
class Workspace:
    """A folder as it was named, and its real path, in which everything that is uploaded lies."""

    name: str
    root: str

    @cached_property
    def ignore(self) -> Ignore:
        """Its rules for what stays at home; PushFailedError when its `.hfignore` can't be read."""
        path = os.path.join(self.root, IGNORE_FILE)
        if not os.path.lexists(path):
            return Ignore.of("")
        file = self._tree.file(IGNORE_FILE, path) or broken(IGNORE_FILE, "is a link to a folder")
        try:
            return Ignore.of(read_whole(file, MAX_IGNORE_BYTES).decode("utf-8-sig", "replace"))
        except BrokenFile as error:
            raise PushFailedError(f"{error}.") from error

    @cached_property
    def files(self) -> tuple[File, ...]:
        """The files to be uploaded, by name; one that can't be has a `problem`."""
        files = sorted(map(self._file, self._walked[0]), key=lambda file: file.name)
        collisions = names.collisions(file.name for file in files)
        clashes = {name: f"has no place beside {other}: {reason}" for other, name, reason in collisions}
        return tuple(_refused(file, clashes.get(file.name)) for file in files)

    @property
    def withheld(self) -> list[str]:
        """The files and folders (`name/`) that are not uploaded, only because they look like secrets; by name."""
        return self._walked[1]

    def contents(self) -> Contents:
        """The files as those of the model that `show` describes, for the rules of health."""
        return Contents(folder_snapshot(self.name), self.files)

    @cached_property
    def _walked(self) -> tuple[list[Entry], list[str]]:
        withheld = []

        def stays_at_home(name: str, is_folder: bool) -> bool:
            is_ignored = self.ignore.matches(name, is_folder)
            is_secret = self.ignore.withholds(name, is_folder) if is_ignored else self._leads_to_secret(name)
            if is_secret:
                withheld.append(name + "/" * is_folder)
            return is_ignored or is_secret

        return list(walk(self.root, stays_at_home)), sorted(withheld)

    def _leads_to_secret(self, name: str) -> bool:
        """Return whether this is a link to a secret of the folder, and the user does not push it by this name."""
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
        return Tree((self.root,), _PLACE)

    def _file(self, entry: Entry) -> File:
        name, path, problem = entry
        if problem is not None:
            return broken(name, problem)
        if not path.endswith(name):
            return broken(name, "has a name that is not UTF-8")
        file = self._tree.file(name, path) or broken(name, "is a link to a folder")
        # Only the cache names files by their hashes: a folder `blobs` of the user's says nothing.
        return file._replace(blob=None)


def _refused(file: File, clash: str | None) -> File:
    """The file, with a problem if no file on the hub may have its name."""
    problem = file.problem or names.problem_of_file(file.name) or clash
    return broken(file.name, problem) if problem else file


def find(name: str) -> Workspace:
    """The workspace in a folder that the user named; WorkspaceNotFoundError when there is no such folder."""
    if not os.path.isdir(name):
        problem = "is not a folder" if os.path.lexists(name) else "does not exist"
        raise WorkspaceNotFoundError(f"The folder {name!r} {problem}.")
    return Workspace(name, os.path.realpath(name))
