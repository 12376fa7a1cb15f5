"""The changes that a push makes on the hub: compare the files of a folder with those of a branch by content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mlxk2.checkpoint.checksums import digest
from mlxk2.checkpoint.files import BrokenFile, File
from mlxk2.errors import PushFailedError
from mlxk2.formatting import join_names, printable
from mlxk2.workspace.folder import Workspace

if TYPE_CHECKING:
    from mlxk2.formatting import Progress

MADE_BY_HUB = ".gitattributes"  # The hub creates this file in every new repo.


class HubFile(NamedTuple):
    """A file on the hub: its size in bytes and the hash of its content (SHA-256 for large files, git's SHA-1 else)."""

    size: int
    blob: str | None


class ChangeCounts(NamedTuple):
    """The numbers of files that a push adds, modifies and deletes; `modified` is None if only the hub can compare."""

    added: int
    modified: int | None
    deleted: int

    def __str__(self) -> str:
        if self.added == self.modified == self.deleted == 0:
            return "no changes"
        return f"+{self.added} ~{'?' if self.modified is None else self.modified} -{self.deleted}"


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes that make a branch equal to a folder.

    The content of `modified` files differs; `unclear` files can be compared only by the hub. A file that was hashed has
    its hash as `blob`.
    """

    added: tuple[File, ...]
    modified: tuple[File, ...]
    unclear: tuple[File, ...]
    deleted: tuple[str, ...]

    @property
    def uploads(self) -> tuple[File, ...]:
        """The files to upload."""
        return self.added + self.modified + self.unclear

    @property
    def is_empty(self) -> bool:
        """Whether the branch is certainly equal to the folder."""
        return not self.uploads and not self.deleted

    @property
    def counts(self) -> ChangeCounts:
        """The numbers of files."""
        return ChangeCounts(len(self.added), None if self.unclear else len(self.modified), len(self.deleted))


@dataclass(frozen=True, slots=True)
class Upload:
    """The input of a push: the changes to a branch at the commit `parent`, the ignore rules, the commit message."""

    changes: Changes
    parent: str | None
    ignored: str
    message: str


def compare(workspace: Workspace, on_hub: Mapping[str, HubFile], progress: Progress) -> Changes:
    """Return the changes that a push of this folder makes to a branch with these files.

    Read only files of the same size, each one once. Raise PushFailedError when the folder has no files, or when a file
    can't be read.
    """
    files = check_uploadable(workspace)
    known = [file for file in files if file.name in on_hub]
    same_size = [file for file in known if file.size == on_hub[file.name].size]
    named = [file._replace(blob=on_hub[file.name].blob) for file in same_size]
    comparable = [file for file in named if file.blob is not None]
    try:
        with progress("Comparing", sum(file.size for file in comparable)) as advance:
            hashed = [file._replace(blob=digest(file, advance)) for file in comparable]
    except BrokenFile as error:
        raise PushFailedError(f"Nothing was pushed: {error}.") from error
    gone = sorted(on_hub.keys() - {file.name for file in files} - {MADE_BY_HUB, *workspace.secrets})
    return Changes(
        added=tuple(file for file in files if file.name not in on_hub),
        modified=(
            *(file for file in known if file.size != on_hub[file.name].size),
            *(file for file in hashed if file.blob != on_hub[file.name].blob),
        ),
        unclear=tuple(file for file in same_size if on_hub[file.name].blob is None),
        deleted=tuple(name for name in gone if not workspace.ignore.covers(name)),
    )


def check_uploadable(workspace: Workspace) -> tuple[File, ...]:
    """Return the files of a workspace; raise PushFailedError if it has none, or if some can't be uploaded."""
    if not workspace.files:
        raise PushFailedError(f"There are no files to push in {workspace.name!r}.")
    if problems := [f"{printable(file.name)} {file.problem}" for file in workspace.files if file.problem]:
        raise PushFailedError(
            f"Nothing was pushed: {join_names(problems)}.",
            hint="Rename files with invalid names. Replace links by the files themselves (`mlxk2 clone` makes a folder "
            "without links). Or add files to .hfignore that should not be uploaded.",
        )
    return workspace.files
