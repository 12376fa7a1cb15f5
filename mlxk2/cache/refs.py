"""A model's refs (small files that map its branches and tags to commits), and the files that one revision needs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress

from mlxk2.cache import directory
from mlxk2.cache.directory import Directory
from mlxk2.checkpoint.files import SAFE_FLAGS, BrokenFile, Tree, read
from mlxk2.names import is_macos_metadata

MAX_BYTES = 256
FOLDER = "refs"

_UNFINISHED = ".incomplete-ref"

Place = tuple[str, ...]  # A path below a model's folder, split into names.


def commit_of(model: str, ref: str, tree: Tree) -> str | None:
    """Return the commit of a ref of the model in this folder, or None if the ref is missing or unreadable."""
    if is_macos_metadata(os.path.basename(ref)):
        return None
    file = tree.file(ref, os.path.join(model, FOLDER, ref))
    try:
        return _commit_in(read(file, MAX_BYTES)) if file else None
    except BrokenFile:
        return None


def find_refusal(model: str, ref: str, tree: Tree) -> str | None:
    """Return why the operating system does not let the user read a ref; None if it does, or if the ref is missing."""
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


def write(model: str, ref: str, commit: str) -> None:
    """Write a commit to a ref, in one rename, so that readers find the old commit or the new one.

    Replace links on the path to the ref. Raise OSError when the disk refuses, or another ref is in the way.
    """
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
    target = os.path.join(folder, name)
    if os.path.isdir(target) and not os.path.islink(target):
        for path, _, _ in os.walk(target, topdown=False):
            os.rmdir(path)
    os.replace(new, target)


def find_conflict(model: str, ref: str) -> str | None:
    """Return an existing ref that can't be kept beside this one, or None.

    Such a ref is a file where this one needs a folder, or in a folder where this one needs a file, or has the same name
    on a disk that ignores case. A link, or a folder without refs, is no conflict.
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
    if not os.path.isdir(path):
        return there if there != ref else None
    below = (os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names)
    return next((os.path.join(there, os.path.relpath(file, path)) for file in below), None)


def places_only_of(
    model: Directory, revision: str, snapshot: Directory | None, others: Collection[str]
) -> Iterator[Place]:
    """Yield the paths below a model's folder that only this revision needs: blobs, refs and notes of huggingface_hub.

    `others` are the revisions in `snapshots/` that stay. The notes can be missing.
    """
    if snapshot is not None:
        needed = _linked_names(snapshot)
        for other in others:
            with model.open("snapshots", other) as folder:
                needed -= set() if folder is None else _linked_names(folder)
        yield from (("blobs", blob) for blob in sorted(needed.intersection(model.names("blobs"))))
    if revision in others:
        return  # The revision was pulled again after the plan was made.
    yield ("trees", f"{revision}.json")
    yield (".no_exist", revision)
    with model.open(FOLDER) as refs:
        if refs is None:
            return
        # A branch with slashes in its name is in subfolders. A link is not a ref, and is not followed.
        for path, _, files, descriptor in os.fwalk(".", dir_fd=refs.descriptor):
            folder = Directory(descriptor, os.path.join(refs.path, path))
            parents = [part for part in path.split(os.sep) if part != "."]
            for name in files:
                if not is_macos_metadata(name) and _read_commit(folder, name) == revision:
                    yield (FOLDER, *parents, name)


def _linked_names(snapshot: Directory) -> set[str]:
    """Return the names of all files to which the links of a snapshot lead."""
    targets = (folder.link_target(name) for name, folder in snapshot.walk())
    return {os.path.basename(target) for target in targets if target is not None}


def _read_commit(folder: Directory, name: str) -> str | None:
    try:
        descriptor = folder.open_file(name, os.O_RDONLY | SAFE_FLAGS)
    except OSError:
        return None  # A link or an unreadable file: downloads never write such a ref.
    try:
        return _commit_in(os.read(descriptor, MAX_BYTES))
    finally:
        os.close(descriptor)


def _commit_in(text: bytes) -> str:
    return text.decode("ascii", "replace").strip()
