"""Where removed things wait for their end: folders of the hub that are never listed.

    .trash-model-<random>/models--org--name                          a model's whole folder
    .trash-revision-<random>/models--org--name/snapshots/<commit>    one revision; what goes with it is beside it, in
                                                                     `blobs/` and `rest/`
To rename something into the trash is the moment at which it is gone. All that follows can be done again by anyone who
finds the trash abandoned, until the last step, which removes the trash itself.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import product
from typing import NamedTuple, Protocol

from mlxk2.cache import belongings, directory, locks, scratch, space
from mlxk2.cache.directory import Usage
from mlxk2.cache.scratch import Scratch
from mlxk2.names import COMPANION, FOLDER_PREFIX, INCOMPLETE, is_macos_metadata, repo_id_of

MODEL_PREFIX = ".trash-model-"
REVISION_PREFIX = ".trash-revision-"

_PAYLOAD = re.compile(r"blobs/[0-9a-f]{2}/[0-9a-f]{64}")
_MADE = ("snapshots", "blobs", "rest")


class SharedStore(Protocol):
    """The blobs that all repos of a hub folder share; their payloads go with the last link to them."""

    def released_with(self, blobs: Iterable[str]) -> list[str]:
        """The payloads that nobody needs once these links in the repos' `blobs/` are gone."""

    def unreferenced(self) -> list[str]:
        """The payloads to which nothing refers any more."""

    def tidy(self) -> None:
        """Remove what killed processes left unfinished."""

    def files_of(self, payload: str) -> list[str]:
        """The files that go when a payload goes."""

    def sweep(self, payload: str) -> None:
        """Remove a payload if nothing refers to it any more."""


class Remains(NamedTuple):
    """What a killed removal left: its model, and the revision unless all of the model was to go."""

    name: str
    revision: str | None


class Outcome(NamedTuple):
    """What a removal did: what the disk gained, and how many stale lock files were among it."""

    freed_bytes: int
    lock_files_cleaned: int


def take_model(entries: Iterable[str], hub: int, trash: Scratch) -> None:
    """Rename into the trash what the hub folder has of a model: its folder or a link, its unfinished download."""
    for entry in entries:
        _rename(entry, hub, entry, trash.handle)


def take_revision(folder: str, revision: str, hub: int, trash: Scratch) -> None:
    """Rename a snapshot into the trash; FileNotFoundError when there is none."""
    for path in (folder, *(os.path.join(folder, name) for name in _MADE)):
        os.mkdir(path, dir_fd=trash.handle)
    _move((folder, "snapshots", revision), hub, (folder, "snapshots", revision), trash.handle)


def gather(trash: Scratch, hub: int, usage: Usage) -> bool:
    """Take what else goes with what is in the trash; done once more, it finds nothing left.

    What a full disk has no room to move is deleted where it stands, and counted. False when links to shared payloads
    had to stay: they say in the trash what is to be released.
    """
    folders = _model_folders(trash) if _is_of_revision(trash) else []
    return all([_take_rest(folder, hub, trash, usage) for folder in folders])


def finish(trash: Scratch, hub: int, hub_path: str, store: SharedStore | None, usage: Usage | None = None) -> Outcome:
    """Remove all that belongs to what is in the trash, then the trash; `usage` is what was counted before."""
    usage = usage or Usage()
    is_complete = False
    while not is_complete:
        is_complete = gather(trash, hub, usage)
        count(trash, usage, ("blobs", "rest"))
        has_freed = [_empty(folder, trash, hub, hub_path, store, usage) for folder in _model_folders(trash)]
        if not is_complete and not any(has_freed):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    cleaned = sum(locks.clean(hub, folder, usage) for folder in _model_folders(trash))
    if _is_of_revision(trash):
        count(trash, usage, ("snapshots",))
    scratch.remove(trash, hub)
    return Outcome(usage.bytes, cleaned)


def _empty(folder: str, trash: Scratch, hub: int, hub_path: str, store: SharedStore | None, usage: Usage) -> bool:
    """Delete what the trash has of a model, but for a revision's snapshot, by which a killed removal is found.

    Shared payloads go last, since the library locks them, for which a full disk must have gained room. True when
    anything was there.
    """
    with directory.folder(folder, below=trash.handle) as inside:
        if inside is None:
            return False
        if not _is_of_revision(trash):
            directory.remove_all((name for name in directory.names_in(below=inside) if name != "blobs"), inside)
        removed = _empty_folder("rest", inside, lambda _name, _rest: True)
        removed += _empty_folder("blobs", inside, lambda name, blobs: belongings.target_of(name, blobs) is None)
        if store is not None:
            _sweep(folder, trash, hub, hub_path, store, usage)
        removed += _empty_folder("blobs", inside, lambda _name, _blobs: True)
        return removed > 0


def _empty_folder(name: str, below: int, is_meant: Callable[[str, int], bool]) -> int:
    """Delete what is meant in a folder; return how many entries that were."""
    with directory.folder(name, below=below) as folder:
        if folder is None:
            return 0
        names = [entry for entry in directory.names_in(below=folder) if is_meant(entry, folder)]
        return directory.remove_all(names, folder)


def abandoned(hub: int) -> Iterator[Scratch]:
    """The trash that killed removals left; each is ours until the next one is asked for."""
    for prefix in (MODEL_PREFIX, REVISION_PREFIX):
        yield from scratch.abandoned(prefix, hub)


def count(trash: Scratch, usage: Usage, parts: Iterable[str] = _MADE) -> None:
    """Count what was moved into the trash, of a revision only these parts, not the folders that were made for it."""
    if not _is_of_revision(trash):
        for entry in scratch.names_in(trash):
            usage.add(entry, trash.handle)
        return
    for folder, name in product(_model_folders(trash), parts):
        with directory.folder(folder, name, below=trash.handle) as handle:
            if handle is not None:
                usage.add_all(handle)


def remains_in(trash: Scratch) -> list[Remains]:
    """What was to be removed."""
    names = [(repo_id_of(folder), _revision_in(folder, trash)) for folder in _model_folders(trash)]
    return [Remains(*name) for name in names if name[1] or not _is_of_revision(trash)]


def _is_of_revision(trash: Scratch) -> bool:
    return trash.name.startswith(REVISION_PREFIX)


def _model_folders(trash: Scratch) -> list[str]:
    """The folders of the models of which something is in the trash."""
    entries = set(directory.names_in(below=trash.handle))
    unfinished = {entry[1:].removesuffix(INCOMPLETE) for entry in entries if entry.startswith(".")}
    return sorted(name for name in entries | unfinished if name.startswith(FOLDER_PREFIX))


def _revision_in(folder: str, trash: Scratch) -> str | None:
    if not _is_of_revision(trash):
        return None
    names = directory.names_in(folder, "snapshots", below=trash.handle)
    return next((name for name in names if not is_macos_metadata(name)), None)


def _take_rest(folder: str, hub: int, trash: Scratch, usage: Usage) -> bool:
    """Move into the trash what was there for the trash's revision alone; False when something had to stay."""
    revision = _revision_in(folder, trash)
    with (
        directory.folder(folder, below=hub) as model,
        directory.folder(folder, below=trash.handle) as inside,
        directory.folder(folder, "snapshots", revision or "", below=trash.handle) as snapshot,
    ):
        if revision is None or model is None or inside is None:
            return True
        others = directory.names_in("snapshots", below=model)
        blobs = belongings.blobs_only_of(snapshot, model, others) if snapshot is not None else []
        moves: list[tuple[belongings.Parts, belongings.Parts]] = [(("blobs", blob), ("blobs", blob)) for blob in blobs]
        # The same revision may have been pulled again since.
        notes = belongings.bookkeeping_of(revision, model) if revision not in others else ()
        moves += [(note, ("rest", secrets.token_hex(8))) for note in notes]
        return all([_move_or_delete(source, model, target, inside, usage) for source, target in moves])


def _move_or_delete(source: belongings.Parts, model: int, target: belongings.Parts, inside: int, usage: Usage) -> bool:
    """Move what may have gone; on a full disk delete it, unless it is a link. False when it had to stay."""
    try:
        with suppress(FileNotFoundError):
            _move(source, model, target, inside)
    except OSError as error:
        if error.errno not in space.FULL:
            raise
        with directory.folder(*source[:-1], below=model) as parent:
            if parent is None or belongings.target_of(source[-1], parent) is not None:
                return False
            usage.add(source[-1], parent)
            directory.remove(source[-1], parent)
    return True


def _move(source: belongings.Parts, below: int, target: belongings.Parts, target_below: int) -> None:
    """Rename below handles; FileNotFoundError where a folder on either way is none, or a link."""
    with (
        directory.folder(*source[:-1], below=below) as parent,
        directory.folder(*target[:-1], below=target_below) as target_parent,
    ):
        if parent is None or target_parent is None:
            raise FileNotFoundError
        _rename(source[-1], parent, target[-1], target_parent)


def _rename(name: str, below: int, target: str, target_below: int) -> None:
    """Rename a file or folder, and the companion that macOS may have laid beside it."""
    os.rename(name, target, src_dir_fd=below, dst_dir_fd=target_below)
    with suppress(FileNotFoundError):
        companions = (COMPANION + name, COMPANION + target)
        os.rename(*companions, src_dir_fd=below, dst_dir_fd=target_below)


def _sweep(folder: str, trash: Scratch, hub: int, hub_path: str, store: SharedStore, usage: Usage) -> None:
    """Release the shared payloads that the trash's blobs linked to."""
    with directory.folder(folder, "blobs", below=trash.handle) as blobs:
        if blobs is None:
            return
        targets = [belongings.target_of(blob, blobs) for blob in directory.names_in(below=blobs)]
    for target in filter(None, targets):
        # As the link read where it stood.
        payload = os.path.normpath(os.path.join(hub_path, folder, "blobs", target))
        place = os.path.relpath(payload, hub_path)
        if not _PAYLOAD.fullmatch(place):
            continue
        # The library looks at the store and at the payload, not at the folder between them.
        with directory.folder(*place.split(os.sep)[:-1], below=hub) as parent:
            if parent is not None:
                _sweep_payload(payload, store, usage)


def sweep_unreferenced(store: SharedStore, usage: Usage) -> None:
    """Release the shared payloads that no model needs, whatever became of the links to them."""
    for payload in store.unreferenced():
        _sweep_payload(payload, store, usage)


def _sweep_payload(payload: str, store: SharedStore, usage: Usage) -> None:
    before = {path: os.lstat(path) for path in store.files_of(payload) if os.path.lexists(path)}
    store.sweep(payload)
    for path, status in before.items():
        if not os.path.lexists(path):
            usage.add_status(status)
