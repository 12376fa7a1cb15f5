"""A model's refs: small files below `refs/`, by which its branches and tags name commits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from mlxk2.cache import directory
from mlxk2.checkpoint.files import SAFELY, BrokenFile, Tree, read
from mlxk2.names import is_macos_metadata

MAX_BYTES = 256
FOLDER = "refs"

_UNFINISHED = ".incomplete-ref"


def commit_of(ref: str, model: str, tree: Tree) -> str | None:
    """The commit that a ref of the model in this folder names; None where no ref can be read inside the tree."""
    if is_macos_metadata(os.path.basename(ref)):
        return None
    file = tree.file(ref, os.path.join(model, FOLDER, ref))
    try:
        return _commit_in(read(file, MAX_BYTES)) if file else None
    except BrokenFile:
        return None


def refusal(ref: str, model: str, tree: Tree) -> str | None:
    """Why the operating system does not let the user see a ref; None where it does, or there is none."""
    file = tree.file(f"{FOLDER}/{ref}", os.path.join(model, FOLDER, ref))
    if file is None:
        return None
    if file.is_refused:
        return f"{file.name} {file.problem}"
    try:
        read(file, MAX_BYTES)
    except BrokenFile as error:
        return None if file.problem else str(error)
    return None


def write(ref: str, commit: str, model: str) -> None:
    """Let a ref name a commit; a reader finds the old one or the new. A link in its place or on the way gives way."""
    *parents, name = ref.split("/")
    folder = os.path.join(model, FOLDER)
    os.makedirs(folder, exist_ok=True)
    for parent in parents:
        folder = os.path.join(folder, parent)
        if os.path.islink(folder):
            os.unlink(folder)
        os.makedirs(folder, exist_ok=True)
    new = os.path.join(model, _UNFINISHED)
    with suppress(FileNotFoundError):
        os.unlink(new)
    with open(new, "x", encoding="ascii") as file:
        file.write(commit)
    place = os.path.join(folder, name)
    if os.path.isdir(place) and not os.path.islink(place):
        for path, _, _ in os.walk(place, topdown=False):
            os.rmdir(path)
    os.replace(new, place)


def in_the_way(ref: str, model: str) -> str | None:
    """The other ref that stands where this one must be written: on its way, below it, or as the same name on this disk.

    A disk may ignore case. A link or a folder without refs is not in the way.
    """
    path, found = os.path.join(model, FOLDER), []
    for step in ref.split("/"):
        path = os.path.join(path, step)
        if os.path.islink(path) or not os.path.lexists(path):
            return None
        found.append(directory.name_on_disk(path))
        if not os.path.isdir(path):
            break
    there = "/".join(found)
    if os.path.isdir(path):
        return next((os.path.join(there, name) for name in _below(path)), None)
    return there if there != ref else None


def _below(folder: str) -> Iterator[str]:
    return (os.path.relpath(os.path.join(path, name), folder) for path, _, names in os.walk(folder) for name in names)


def to(commit: str, model: int) -> Iterator[tuple[str, ...]]:
    """The places of the refs that name a commit, below a handle of their model's folder.

    A branch with slashes in its name lies in folders. A link is no ref, and leads nowhere.
    """
    with directory.folder(FOLDER, below=model) as refs:
        if refs is None:
            return
        for path, _, files, inner in os.fwalk(".", dir_fd=refs):
            parents = [part for part in path.split(os.sep) if part != "."]
            names = [name for name in files if not is_macos_metadata(name)]
            yield from ((FOLDER, *parents, name) for name in names if _read_below(name, inner) == commit)


def _read_below(name: str, below: int) -> str | None:
    try:
        handle = os.open(name, os.O_RDONLY | SAFELY, dir_fd=below)
    except OSError:
        return None  # a link, or locked away: no download wrote such a ref
    try:
        return _commit_in(os.read(handle, MAX_BYTES))
    finally:
        os.close(handle)


def _commit_in(text: bytes) -> str:
    return text.decode("ascii", "replace").strip()
