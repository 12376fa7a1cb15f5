"""Folders for work in progress. Whoever makes one holds a lock on it, so that what a killed process left is known."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from mlxk2.cache import handles
from mlxk2.cache.locks import try_lock


class Scratch(NamedTuple):
    """A folder that is ours as long as its handle is open."""

    name: str
    handle: int


@contextmanager
def created(prefix: str, below: int) -> Iterator[Scratch]:
    """A new folder whose name begins with `prefix`; it stays, for the caller to remove."""
    while True:
        name = prefix + secrets.token_hex(4)
        os.mkdir(name, dir_fd=below)
        with handles.folder(name, below=below) as handle:
            # Between the two calls another process may have taken it for an abandoned one.
            if handle is not None and try_lock(handle) and _is_there(name, below):
                yield Scratch(name, handle)
                return


def abandoned(prefix: str, below: int) -> Iterator[Scratch]:
    """The folders of this prefix whose makers are dead; each is ours until the next one is asked for."""
    for name in handles.names_in(below=below):
        if name.startswith(prefix):
            with handles.folder(name, below=below) as handle:
                if handle is not None and try_lock(handle):
                    yield Scratch(name, handle)


def remove(scratch: Scratch, below: int) -> None:
    """Remove a folder and all that is in it; links in it are removed, not followed."""
    shutil.rmtree(scratch.name, dir_fd=below)


def _is_there(name: str, below: int) -> bool:
    # Not by listing: Btrfs lists of an open folder only what was in it when it was opened.
    try:
        os.stat(name, dir_fd=below, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
