"""What a push would change on the hub: a folder's files beside those of a branch, compared by content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mlxk2.checkpoint.checksums import digest
from mlxk2.checkpoint.files import BrokenFile, File
from mlxk2.errors import PushFailedError
from mlxk2.formatting import listed, printable
from mlxk2.spec import ChangeSummary
from mlxk2.workspace.folder import Workspace

if TYPE_CHECKING:
    from mlxk2.formatting import Progress

# The hub makes this one itself, in every new repo.
HUB_MADE = ".gitattributes"


class HubFile(NamedTuple):
    """A file on the hub: its size in bytes and the hash of its content (SHA-256 of large files, else git's SHA-1)."""

    size: int
    blob: str | None


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
    def are_none(self) -> bool:
        """Whether the branch is known to be the same as the folder."""
        return not self.uploads and not self.deleted

    @property
    def summary(self) -> ChangeSummary:
        """The changes as counts."""
        modified = None if self.unclear else len(self.modified)
        return {"added": len(self.added), "modified": modified, "deleted": len(self.deleted)}


@dataclass(frozen=True, slots=True)
class Upload:
    """What a push brings: the changes to a branch that stands at `parent`, the ignore rules, the commit's message."""

    changes: Changes
    parent: str | None
    ignored: str
    message: str


def counted(summary: ChangeSummary) -> str:
    """`+2 ~1 -0`, with `~?` for what only the hub can compare; `no changes`."""
    added, modified, deleted = summary["added"], summary["modified"], summary["deleted"]
    if modified == added == deleted == 0:
        return "no changes"
    return f"+{added} ~{'?' if modified is None else modified} -{deleted}"


def compare(workspace: Workspace, on_hub: Mapping[str, HubFile], progress: Progress) -> Changes:
    """The changes that a push of this folder makes to a branch with these files.

    Only files of the same size are read. PushFailedError when the folder has no files, or one that can't be read.
    """
    files = uploadable(workspace)
    known = [file for file in files if file.name in on_hub]
    resized = [file for file in known if file.size != on_hub[file.name].size]
    same_size = [file for file in known if file.size == on_hub[file.name].size]
    comparable = [file for file in same_size if on_hub[file.name].blob is not None]
    return Changes(
        added=tuple(file for file in files if file.name not in on_hub),
        modified=(*resized, *_differing(comparable, on_hub, progress)),
        unclear=tuple(file for file in same_size if on_hub[file.name].blob is None),
        deleted=tuple(_deleted(workspace, {file.name for file in files}, on_hub)),
    )


def uploadable(workspace: Workspace) -> tuple[File, ...]:
    """The files of a workspace; PushFailedError when there are none, or some that can't be uploaded."""
    if not workspace.files:
        raise PushFailedError(f"There are no files to push in {workspace.name!r}.")
    if problems := [f"{printable(file.name)} {file.problem}" for file in workspace.files if file.problem]:
        raise PushFailedError(
            f"Nothing was pushed: {listed(problems)}.",
            hint="Rename files whose names are at fault. Replace links by the files themselves (`mlxk2 clone` makes a "
            "folder without links). Or name in .hfignore what is to stay at home.",
        )
    return workspace.files


def _differing(files: Sequence[File], on_hub: Mapping[str, HubFile], progress: Progress) -> list[File]:
    """The files whose bytes do not have the hash that the hub gives; each is read once."""
    named = [file._replace(blob=on_hub[file.name].blob) for file in files]
    try:
        with progress("Comparing", sum(file.size for file in files)) as advance:
            hashed = [file._replace(blob=digest(file, advance)) for file in named]
    except BrokenFile as error:
        raise PushFailedError(f"Nothing was pushed: {error}.") from error
    return [file for file in hashed if file.blob != on_hub[file.name].blob]


def _deleted(workspace: Workspace, names: set[str], on_hub: Mapping[str, HubFile]) -> Iterable[str]:
    """The hub's files that the folder has not, but for those that no push ever touches."""
    gone = sorted(on_hub.keys() - names - {HUB_MADE, *workspace.withheld})
    return (name for name in gone if not workspace.ignore.covers(name))
