"""Decide whether a model can run here, and suggest a repair if it can't."""

from __future__ import annotations

import os
from contextlib import suppress

from mlxk2 import names
from mlxk2.cache.store import Cache
from mlxk2.checkpoint import checksums
from mlxk2.checkpoint.describe import find_and_describe
from mlxk2.checkpoint.files import BrokenFile
from mlxk2.checkpoint.model_info import ModelInfo
from mlxk2.checkpoint.snapshot import Snapshot
from mlxk2.errors import ModelNotRunnableError, ModelUnhealthyError
from mlxk2.names import Folder, ModelRef, Repo

MAX_HASHED_BYTES = 1 << 24  # Hashing larger files takes too long for a hint.

ON_THE_HUB = "The file is the same on the hub, so a pull can't repair it."
NOT_OURS = "A pull can't repair it: you may not change its folder in the cache. Check the folder's owner and its mode."


def resolve_runnable(cache: Cache, ref: ModelRef) -> Snapshot:
    """Return the snapshot that a model argument names, if its files are complete and mlx-lm can run it.

    Raise NotFoundError, ModelUnhealthyError or ModelNotRunnableError, each with a hint if a repair is known.
    """
    snapshot, info = find_and_describe(lambda: cache.resolve(ref))
    if not info.is_healthy:
        raise ModelUnhealthyError(describe_problem(info), hint=repair_hint(snapshot, info, ref))
    if not info.is_runnable:
        raise ModelNotRunnableError(f"{info.name} can't run here: {info.why_not_runnable}")
    return snapshot


def describe_problem(info: ModelInfo) -> str:
    """Return a sentence about an unhealthy model: it is damaged, or the user may not read it."""
    verdict = "can't be read" if info.is_refused else "is damaged"
    return f"{info.name} {verdict}: {info.problem}"


def repair_hint(snapshot: Snapshot, info: ModelInfo, ref: ModelRef) -> str | None:
    """Return how to repair the unhealthy model that a model argument names, or None if no repair is known."""
    if info.problem_file and isinstance(ref, Folder):
        return f"Put {info.problem_file} into the folder again, from where you have the model."
    if info.problem is None or snapshot.roots is None or not isinstance(ref, Repo):
        return None
    command = names.pull_command(snapshot.name, ref.revision)
    file = snapshot.file(info.problem_file) if info.problem_file else None
    if command is None or (file and file.is_in_icloud):
        return None
    model = snapshot.roots[-1]
    # A pull writes into these folders.
    written = (snapshot.path, *(os.path.join(model, name) for name in ("blobs", "snapshots", "refs")))
    folders = (model, *(folder for folder in written if os.path.lexists(folder)))
    if not all(os.access(folder, os.R_OK | os.W_OK | os.X_OK) for folder in folders):
        return NOT_OURS
    # If the file's hash is right, the hub has the same bytes, and a pull would fetch them again.
    if file and not file.problem and file.size <= MAX_HASHED_BYTES and file in checksums.hashed_files(snapshot):
        with suppress(BrokenFile):
            if checksums.digest(file, lambda _: None) == file.blob:
                return ON_THE_HUB
    return f"Repair it with: {command}"
