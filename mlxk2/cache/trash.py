"""Delete what was removed: from a trash folder, or from a hidden place in the model's folder if the disk is full.

    .trash-model-<random>/models--org--name                          a model's whole folder
    .trash-revision-<random>/models--org--name/snapshots/<commit>    one revision; the other files that only it needs
                                                                     are beside it, in `blobs/` and `rest/`
    models--org--name/.removed/<commit>                              a model without a trash; `.removed` was `snapshots`
    models--org--name/.removed-<commit>                              one revision without a trash

The rename to such a place is the removal: after it, no command lists the model. All later steps can be repeated, so
that the next removal can finish one that was killed. The last step deletes what the rename moved.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from typing import NamedTuple, Protocol

from mlxk2.cache import locks, refs, scratch, space
from mlxk2.cache.directory import Directory
from mlxk2.cache.refs import Place
from mlxk2.cache.scratch import Scratch
from mlxk2.cache.space import Usage
from mlxk2.cache.store import is_removed
from mlxk2.names import COMPANION, FOLDER_PREFIX, INCOMPLETE, REMOVED, is_macos_metadata, repo_id_of

MODEL_PREFIX = ".trash-model-"
REVISION_PREFIX = ".trash-revision-"

_HIDDEN_REVISION = REMOVED + "-"
_PAYLOAD = re.compile(r"blobs/[0-9a-f]{2}/[0-9a-f]{64}")
_FOLDERS = ("snapshots", "blobs", "rest")  # The folders of a model in a trash for a revision.


class SharedStore(Protocol):
    """The blobs that all repos of a cache share. A shared blob is called payload; the last link to it keeps it."""

    def released_with(self, blobs: Iterable[str]) -> list[str]:
        """Return the payloads that no repo needs after the removal of these links in the repos' `blobs/`."""

    def unreferenced(self) -> list[str]:
        """Return the payloads to which no repo links."""

    def tidy(self) -> None:
        """Remove unfinished files of killed processes."""

    def files_of(self, payload: str) -> list[str]:
        """Return the files that are removed together with a payload."""

    def sweep(self, payload: str) -> None:
        """Remove a payload if no repo links to it."""


class Interrupted(NamedTuple):
    """A removal that was killed: its model, and its revision, or None if it was to remove the whole model."""

    name: str
    revision: str | None


class Freed(NamedTuple):
    """The result of a removal: the disk space in bytes and the number of stale lock files that it removed."""

    bytes: int
    lock_files: int

    def plus(self, other: Freed) -> Freed:
        """Return the sum of both."""
        return Freed(self.bytes + other.bytes, self.lock_files + other.lock_files)


class Trash:
    """A folder of the cache for removed models; locked by the process that made it, or by the one that recovers it."""

    def __init__(self, held: Scratch, store: SharedStore | None, usage: Usage | None = None) -> None:
        self._scratch = held
        self._store = store
        self._usage = usage or Usage()
        self._cache_dir = held.parent
        self._is_of_revision = held.name.startswith(REVISION_PREFIX)

    @classmethod
    @contextmanager
    def create(
        cls, cache_dir: Directory, prefix: str, store: SharedStore | None, usage: Usage | None = None
    ) -> Iterator[Trash]:
        """Make a new trash; its prefix says whether it is for a model or a revision. Add counts to `usage`."""
        with scratch.create(cache_dir, prefix) as held:
            yield cls(held, store, usage)

    def take_model(self, entries: Iterable[str]) -> None:
        """Move in the model's entries of the cache folder: its folder or a link, and its unfinished download."""
        for entry in entries:
            _rename(self._cache_dir, entry, self._scratch.folder, entry)

    def take_revision(self, folder: str, revision: str) -> None:
        """Move in a snapshot; raise FileNotFoundError when it does not exist."""
        for path in (folder, *(os.path.join(folder, name) for name in _FOLDERS)):
            self._scratch.folder.make(path)
        place = (folder, "snapshots", revision)
        _move(self._cache_dir, place, self._scratch.folder, place)

    def gather(self) -> bool:
        """Move in the other files that only the removed revision needs; a repeated call has nothing to do.

        If the disk is too full to move a file, delete and count the file in its place. Return False when links to
        shared payloads had to stay, because the trash needs these links to find the payloads.
        """
        is_complete = True
        for folder in self._model_folders() if self._is_of_revision else ():
            revision = self._revision_in(folder)
            with (
                self._cache_dir.open(folder) as model,
                self._scratch.folder.open(folder) as inside,
                self._scratch.folder.open(folder, "snapshots", revision or "") as snapshot,
            ):
                if revision is None or model is None or inside is None:
                    continue
                for place in list(refs.places_only_of(model, revision, snapshot, model.names("snapshots"))):
                    target = place if place[0] == "blobs" else ("rest", secrets.token_hex(8))
                    is_complete &= self._move_or_delete(model, place, inside, target)
        return is_complete

    def _move_or_delete(self, model: Directory, source: Place, inside: Directory, target: Place) -> bool:
        """Move a file that can already be gone; on a full disk, delete it. Return False for a link that had to stay."""
        try:
            with suppress(FileNotFoundError):
                _move(model, source, inside, target)
        except OSError as error:
            if error.errno not in space.FULL:
                raise
            with model.open(*source[:-1]) as parent:
                if parent is None or parent.link_target(source[-1]) is not None:
                    return False
                self._usage.remove(parent, source[-1])
        return True

    def finish(self) -> Freed:
        """Delete everything that belongs to the removed models, then the trash itself."""
        is_complete = False
        while not is_complete:
            is_complete = self.gather()
            self.count(self._usage, ("blobs", "rest"))
            has_freed = [self._empty(folder) for folder in self._model_folders()]
            if not is_complete and not any(has_freed):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        cleaned = sum(locks.clean(self._cache_dir, folder, self._usage) for folder in self._model_folders())
        if self._is_of_revision:
            self.count(self._usage, ("snapshots",))
        self._scratch.remove()
        return Freed(self._usage.bytes, cleaned)

    def _empty(self, folder: str) -> bool:
        """Delete a model's files in the trash, except a revision's snapshot; return whether there were any.

        The snapshot stays until the end, because a killed removal is found by it. Shared payloads are deleted last:
        huggingface_hub creates lock files for them, and a full disk has no space before the other files are gone.
        """
        with self._scratch.folder.open(folder) as inside:
            if inside is None:
                return False
            if not self._is_of_revision:
                inside.remove_all(name for name in inside.names() if name != "blobs")
            removed = _empty_folder(inside, "rest", lambda _name, _rest: True)
            removed += _empty_folder(inside, "blobs", lambda name, blobs: blobs.link_target(name) is None)
            if self._store is not None:
                self._sweep_payloads(folder, self._store)
            removed += _empty_folder(inside, "blobs", lambda _name, _blobs: True)
            return removed > 0

    def _sweep_payloads(self, folder: str, store: SharedStore) -> None:
        """Release the shared payloads to which a model's blobs in the trash link."""
        with self._scratch.folder.open(folder, "blobs") as blobs:
            targets = [] if blobs is None else [blobs.link_target(blob) for blob in blobs.names()]
        for target in filter(None, targets):
            # The link is relative to its original place, not to the trash.
            payload = os.path.normpath(os.path.join(self._cache_dir.path, folder, "blobs", target))
            relative = os.path.relpath(payload, self._cache_dir.path)
            if not _PAYLOAD.fullmatch(relative):
                continue
            # huggingface_hub does not check the folder between the store and the payload, which could be a link.
            with self._cache_dir.open(*relative.split(os.sep)[:-1]) as parent:
                if parent is not None:
                    _sweep(payload, store, self._usage)

    def remove_if_unused(self) -> None:
        """Remove the trash, unless something was moved into it."""
        if not self.removals():
            self._scratch.remove()

    def count(self, usage: Usage, parts: Iterable[str] = _FOLDERS) -> None:
        """Count the content of the trash; for a revision, count only these parts, without the folders themselves."""
        if not self._is_of_revision:
            for entry in self._scratch.names():
                usage.add(self._scratch.folder, entry)
            return
        for folder, name in product(self._model_folders(), parts):
            with self._scratch.folder.open(folder, name) as made:
                if made is not None:
                    usage.add_all(made)

    def removals(self) -> list[Interrupted]:
        """Return the removals whose files are in the trash."""
        found = [Interrupted(repo_id_of(folder), self._revision_in(folder)) for folder in self._model_folders()]
        return [removal for removal in found if removal.revision or not self._is_of_revision]

    def _model_folders(self) -> list[str]:
        """Return the folder names of the models whose files are in the trash."""
        entries = set(self._scratch.folder.names())
        unfinished = {entry[1:].removesuffix(INCOMPLETE) for entry in entries if entry.startswith(".")}
        return sorted(name for name in entries | unfinished if name.startswith(FOLDER_PREFIX))

    def _revision_in(self, folder: str) -> str | None:
        names = self._scratch.folder.names(folder, "snapshots") if self._is_of_revision else []
        return next((name for name in names if not is_macos_metadata(name)), None)


class Hidden:
    """A removal without a trash, by a rename within the model's folder, which needs no space on a full disk.

    The files that only the hidden snapshot needs are deleted in their places, and then the hidden snapshot.
    """

    def __init__(self, cache_dir: Directory, folder: str, store: SharedStore | None) -> None:
        self._folder = folder
        self._cache_dir = cache_dir
        self._store = store
        self._usage = Usage()

    def hide(self, revision: str | None) -> None:
        """Hide a revision, or all of them; raise FileNotFoundError when the revision does not exist."""
        with self._cache_dir.open(self._folder) as model:
            if model is None:
                return  # The folder is a link; `delete` removes the link.
            if revision is None:
                with suppress(FileNotFoundError):  # The model has no snapshot.
                    model.rename("snapshots", model, REMOVED)
                return
            with model.open("snapshots") as snapshots:
                if snapshots is None:
                    raise FileNotFoundError
                snapshots.rename(revision, model, _HIDDEN_REVISION + revision)

    def delete(self, *, is_whole: bool = False, beside: Iterable[str] = ()) -> None:
        """Delete the files that only hidden snapshots need; delete the whole model if `is_whole` or no other is left.

        `beside` are the model's other entries of the cache folder.
        """
        for entry in beside:
            self._usage.remove(self._cache_dir, entry)
        with self._cache_dir.open(self._folder) as model:
            if model is None:
                self._usage.remove(self._cache_dir, self._folder)
                return
            for snapshot in _hidden_snapshots(model):
                for place in _places_of_hidden(model, snapshot):
                    self._usage.remove(model, *place)
            for name in model.names() if is_whole or is_removed(model.has) else ():
                if not name.startswith(REMOVED):
                    self._usage.remove(model, name)

    def drop(self) -> Freed:
        """Remove shared payloads and lock files, and last the hidden snapshots, by which a killed removal is found."""
        if self._store is not None:
            for payload in self._store.unreferenced():
                _sweep(payload, self._store, self._usage)
        try:
            if self._is_alone():
                # Now the disk has space for a trash, unless other programs have used it.
                with Trash.create(self._cache_dir, MODEL_PREFIX, self._store, self._usage) as trash:
                    with locks.claim(self._cache_dir, self._folder) as is_ours, suppress(FileNotFoundError):
                        # A new download can have started in the model's folder; then the folder stays.
                        if is_ours and self._is_alone():
                            trash.take_model((self._folder,))
                    return trash.finish()
        except OSError as error:
            if error.errno not in space.FULL:
                raise
        cleaned = locks.clean(self._cache_dir, self._folder, self._usage)
        with self._cache_dir.open(self._folder) as model:
            for name in [] if model is None else model.names():
                if model is not None and name.startswith(REMOVED):
                    self._usage.remove(model, name)
        if not self._cache_dir.names(self._folder):
            self._usage.remove(self._cache_dir, self._folder)
        return Freed(self._usage.bytes, cleaned)

    def finish(self) -> Freed | None:
        """Finish the removal; return None when a download is running, because it can need some of the files."""
        with locks.claim(self._cache_dir, self._folder) as is_ours:
            if not is_ours:
                return None
            self.delete()
        return self.drop()

    def count(self, usage: Usage) -> None:
        """Add the space that `finish` would free to `usage`."""
        with self._cache_dir.open(self._folder) as model:
            if model is None:
                return
            if is_removed(model.has):
                usage.add(self._cache_dir, self._folder)
                return
            for snapshot in _hidden_snapshots(model):
                for place in (*_places_of_hidden(model, snapshot), snapshot):
                    usage.add(model, *place)

    def removals(self) -> list[Interrupted]:
        """Return the unfinished removals of the model."""
        with self._cache_dir.open(self._folder) as model:
            snapshots = [] if model is None else _hidden_snapshots(model)
        hidden = dict.fromkeys(None if place[0] == REMOVED else _commit_of(place) for place in snapshots)
        return [Interrupted(repo_id_of(self._folder), commit) for commit in hidden]

    def _is_alone(self) -> bool:
        """Return whether the model's folder has only hidden entries."""
        return all(name.startswith(REMOVED) for name in self._cache_dir.names(self._folder))


def find_abandoned(cache_dir: Directory, store: SharedStore | None) -> Iterator[Trash | Hidden]:
    """Yield the trash folders and hidden snapshots of killed removals; each trash is locked until the next one."""
    for prefix in (MODEL_PREFIX, REVISION_PREFIX):
        for left in scratch.find_abandoned(cache_dir, prefix):
            yield Trash(left, store)
    for folder in cache_dir.names():
        try:
            names = cache_dir.names(folder) if folder.startswith(FOLDER_PREFIX) else []
        except PermissionError:
            continue  # Another user's model; that user's next removal finishes it.
        if any(name.startswith(REMOVED) for name in names):
            yield Hidden(cache_dir, folder, store)


def _hidden_snapshots(model: Directory) -> list[Place]:
    """Return the places of a model's hidden snapshots."""
    whole = [(REMOVED, commit) for commit in model.names(REMOVED)]
    single = [(name,) for name in model.names() if name.startswith(_HIDDEN_REVISION)]
    return [place for place in (*whole, *single) if not is_macos_metadata(place[-1])]


def _commit_of(snapshot: Place) -> str:
    return snapshot[-1].removeprefix(_HIDDEN_REVISION)


def _places_of_hidden(model: Directory, snapshot: Place) -> Iterator[Place]:
    """Yield the paths of the files that only a hidden snapshot needs."""
    with model.open(*snapshot) as folder:
        yield from refs.places_only_of(model, _commit_of(snapshot), folder, model.names("snapshots"))


def _empty_folder(parent: Directory, name: str, is_meant: Callable[[str, Directory], bool]) -> int:
    """Delete the entries of a folder that `is_meant` accepts; return their number."""
    with parent.open(name) as folder:
        return 0 if folder is None else folder.remove_all([n for n in folder.names() if is_meant(n, folder)])


def _move(below: Directory, source: Place, target_below: Directory, target: Place) -> None:
    """Rename an entry; raise FileNotFoundError when a name on either path is a link or not a folder."""
    with below.open(*source[:-1]) as parent, target_below.open(*target[:-1]) as target_parent:
        if parent is None or target_parent is None:
            raise FileNotFoundError
        _rename(parent, source[-1], target_parent, target[-1])


def _rename(parent: Directory, name: str, target_parent: Directory, target: str) -> None:
    """Rename a file or folder, and its companion file if macOS has made one."""
    parent.rename(name, target_parent, target)
    with suppress(FileNotFoundError):
        parent.rename(COMPANION + name, target_parent, COMPANION + target)


def _sweep(payload: str, store: SharedStore, usage: Usage) -> None:
    """Release a shared payload, and count the space that became free."""
    before = {path: os.lstat(path) for path in store.files_of(payload) if os.path.lexists(path)}
    store.sweep(payload)
    for path, status in before.items():
        if not os.path.lexists(path):
            usage.add_status(status)
