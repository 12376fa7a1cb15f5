"""What a push would change on the hub: a folder's files beside those of a branch, compared by content."""

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

# The hub makes this file itself, in every new repo.
HUB_MADE = ".gitattributes"


class HubFile(NamedTuple):
    """A file on the hub: its size in bytes and the hash of its content (SHA-256 of large files, else git's SHA-1)."""

    size: int
    blob: str | None


class ChangeCounts(NamedTuple):
    """How many files a push adds, modifies and deletes; `modified` is None where only the hub can compare."""

    added: int
    modified: int | None
    deleted: int

    def __str__(self) -> str:
        if self.added == self.modified == self.deleted == 0:
            return "no changes"
        return f"+{self.added} ~{'?' if self.modified is None else self.modified} -{self.deleted}"


@dataclass(frozen=True, slots=True)
class Changes:
    """What makes a branch the same as a folder.

    `modified` holds the files whose content differs, `unclear` those that only the hub itself can compare. A file that
    was hashed has its hash as `blob`.
    """

    added: tuple[File, ...]
    modified: tuple[File, ...]
    unclear: tuple[File, ...]
    deleted: tuple[str, ...]

    @property
    def uploads(self) -> tuple[File, ...]:
        """The files that must go to the hub."""
        return self.added + self.modified + self.unclear

    @property
    def is_empty(self) -> bool:
        """Whether the branch is known to be the same as the folder."""
        return not self.uploads and not self.deleted

    @property
    def counts(self) -> ChangeCounts:
        """The numbers of files."""
        return ChangeCounts(len(self.added), None if self.unclear else len(self.modified), len(self.deleted))


@dataclass(frozen=True, slots=True)
class Upload:
    """What a push brings: the changes to a branch that stands at `parent`, the ignore rules, the commit's message."""

    changes: Changes
    parent: str | None
    ignored: str
    message: str


def compare(workspace: Workspace, on_hub: Mapping[str, HubFile], progress: Progress) -> Changes:
    """Return the changes that a push of this folder makes to a branch with these files.

    Only files of the same size are read, each of them once. Raise PushFailedError when the folder has no files, or one
    that can't be read.
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
    gone = sorted(on_hub.keys() - {file.name for file in files} - {HUB_MADE, *workspace.withheld})
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
    """Return the files of a workspace; raise PushFailedError for none, or for some that can't be uploaded."""
    if not workspace.files:
        raise PushFailedError(f"There are no files to push in {workspace.name!r}.")
    if problems := [f"{printable(file.name)} {file.problem}" for file in workspace.files if file.problem]:
        raise PushFailedError(
            f"Nothing was pushed: {join_names(problems)}.",
            hint="Rename files whose names are at fault. Replace links by the files themselves (`mlxk2 clone` makes a "
            "folder without links). Or name in .hfignore what is to stay at home.",
        )
    return workspace.files
