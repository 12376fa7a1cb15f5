"""What of a model's folder is there for one revision alone, and goes with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from mlxk2.cache import directory, refs

Parts = tuple[str, ...]


def bookkeeping_of(revision: str, model: int) -> Iterator[Parts]:
    """Where, below its model's folder, stands what the client library notes about a revision: some may be missing."""
    yield ("trees", f"{revision}.json")
    yield (".no_exist", revision)
    yield from refs.to(revision, model)


def blobs_only_of(snapshot: int, model: int, others: Iterable[str]) -> list[str]:
    """The blobs of a model to which a snapshot links, and none of the `others` in its `snapshots/`."""
    needed = _linked(snapshot)
    for other in others:
        with directory.folder("snapshots", other, below=model) as handle:
            needed -= set() if handle is None else _linked(handle)
    return sorted(needed.intersection(directory.names_in("blobs", below=model)))


def _linked(snapshot: int) -> set[str]:
    """The names of all files that a snapshot's links lead to."""
    targets = (target_of(name, below) for name, below in directory.walk(snapshot))
    return {os.path.basename(target) for target in targets if target is not None}


def target_of(name: str, below: int) -> str | None:
    """Where a link leads, as it says; None for what is no link."""
    try:
        return os.readlink(name, dir_fd=below)
    except OSError:
        return None
