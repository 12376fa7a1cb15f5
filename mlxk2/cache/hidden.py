"""Removal in place, for disks that are too full for a trash: a rename within the model's folder takes no room.

    models--org--name/.removed/<commit>    all of the model: what was its `snapshots/`
    models--org--name/.removed-<commit>    one revision
A hidden snapshot is in no list. The files that only it needs are deleted where they are, and the hidden snapshot last:
after a kill the next removal finds it, and does all of this again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from mlxk2.cache import belongings, directory
from mlxk2.cache.directory import Usage
from mlxk2.cache.trash import Remains
from mlxk2.names import FOLDER_PREFIX, REMOVED, is_macos_metadata, repo_id_of

_REVISION_PREFIX = REMOVED + "-"


def hide(folder: str, revision: str | None, hub: int) -> None:
    """Hide a model's revision, or all of them; FileNotFoundError when the revision is not there."""
    with directory.folder(folder, below=hub) as model:
        if model is None:
            return  # a link, which is removed itself
        if revision is None:
            with suppress(FileNotFoundError):  # a model without any snapshot
                os.rename("snapshots", REMOVED, src_dir_fd=model, dst_dir_fd=model)
            return
        with directory.folder("snapshots", below=model) as snapshots:
            if snapshots is None:
                raise FileNotFoundError
            os.rename(revision, _REVISION_PREFIX + revision, src_dir_fd=snapshots, dst_dir_fd=model)


def folders(hub: int) -> Iterator[str]:
    """Yield the folders of models of which something is hidden."""
    for folder in directory.names_in(below=hub):
        if folder.startswith(FOLDER_PREFIX) and _has_hidden(folder, hub):
            yield folder


def _has_hidden(folder: str, hub: int) -> bool:
    try:
        return any(name.startswith(REMOVED) for name in directory.names_in(folder, below=hub))
    except PermissionError:
        return False  # another user's model, which is that user's to finish


def remains_in(folder: str, hub: int) -> list[Remains]:
    """List what of a model was to be removed."""
    name = repo_id_of(folder)
    with directory.folder(folder, below=hub) as model:
        if model is None:
            return []
        hidden = [None if parts[0] == REMOVED else _commit_of(parts) for parts in _snapshots(model)]
        return [Remains(name, commit) for commit in dict.fromkeys(hidden)]


def count(folder: str, hub: int, usage: Usage) -> None:
    """Count the room that `delete` would free."""
    with directory.folder(folder, below=hub) as model:
        if model is None:
            return
        if _is_gone(model):
            usage.add(folder, hub)
            return
        for parts in _snapshots(model):
            for *parents, name in (*_belongings(parts, model), parts):
                with directory.folder(*parents, below=model) as parent:
                    if parent is not None:
                        usage.add(name, parent)


def delete(folder: str, hub: int, usage: Usage, *, is_whole: bool = False) -> None:
    """Delete what only hidden snapshots need; all of the model where no other is left, or `is_whole`."""
    with directory.folder(folder, below=hub) as model:
        if model is None:
            _remove((folder,), hub, usage)
            return
        for parts in _snapshots(model):
            for belonging in _belongings(parts, model):
                _remove(belonging, model, usage)
        names = directory.names_in(below=model) if is_whole or _is_gone(model) else ()
        for name in names:
            if not name.startswith(REMOVED):
                _remove((name,), model, usage)


def is_alone(folder: str, hub: int) -> bool:
    """Return whether a model's folder holds nothing but what is hidden."""
    return all(name.startswith(REMOVED) for name in directory.names_in(folder, below=hub))


def drop(folder: str, hub: int, usage: Usage) -> None:
    """Remove what is hidden: the last step, since a removal that is done again begins with it."""
    with directory.folder(folder, below=hub) as model:
        for name in directory.names_in(folder, below=hub) if model is not None else ():
            if model is not None and name.startswith(REMOVED):
                _remove((name,), model, usage)


def _is_gone(model: int) -> bool:
    names = directory.names_in(below=model)
    return REMOVED in names and "snapshots" not in names


def _snapshots(model: int) -> list[belongings.Parts]:
    """Return where the hidden snapshots are, below a handle of their model's folder."""
    whole = [(REMOVED, commit) for commit in directory.names_in(REMOVED, below=model)]
    single = [(name,) for name in directory.names_in(below=model) if name.startswith(_REVISION_PREFIX)]
    return [parts for parts in (*whole, *single) if not is_macos_metadata(parts[-1])]


def _commit_of(parts: belongings.Parts) -> str:
    return parts[-1].removeprefix(_REVISION_PREFIX)


def _belongings(parts: belongings.Parts, model: int) -> Iterator[belongings.Parts]:
    """Yield where the files are that only a hidden snapshot needs."""
    others = directory.names_in("snapshots", below=model)
    with directory.folder(*parts, below=model) as snapshot:
        if snapshot is not None:
            yield from (("blobs", blob) for blob in belongings.blobs_only_of(snapshot, model, others))
    if _commit_of(parts) not in others:  # it may have been pulled again since
        yield from belongings.bookkeeping_of(_commit_of(parts), model)


def _remove(parts: belongings.Parts, model: int, usage: Usage) -> None:
    with directory.folder(*parts[:-1], below=model) as parent:
        if parent is not None:
            usage.add(parts[-1], parent)
            directory.remove(parts[-1], parent)
