"""Whether a model can run here, and what to do about one that can't: a pull, where that can help."""

from __future__ import annotations

import os

from mlxk2 import names
from mlxk2.cache.store import Cache
from mlxk2.checkpoint import checksums
from mlxk2.checkpoint.describe import look
from mlxk2.checkpoint.files import BrokenFile
from mlxk2.checkpoint.snapshot import Snapshot
from mlxk2.errors import IN_ICLOUD, ModelNotRunnableError, ModelUnhealthyError
from mlxk2.names import ModelRef, Repo

MAX_HASHED_BYTES = 1 << 24  # of larger files the hash takes too long for a hint

ON_THE_HUB = "It is so on the hub itself; a pull brings it again as it is."
NOT_OURS = "A pull can't repair it: you may not change its folder in the cache. Check the folder's owner and its mode."


def runnable(cache: Cache, ref: ModelRef) -> Snapshot:
    """Return the snapshot that a model argument names, if its files are whole and mlx-lm can run it.

    Raises NotFoundError, ModelUnhealthyError or ModelNotRunnableError, each with what to do about it.
    """
    snapshot, info = look(lambda: cache.resolve(ref))
    if info.problem is not None:
        hint = repair_hint(snapshot, info.problem, ref)
        raise ModelUnhealthyError(complaint(snapshot, info.problem), hint=hint)
    if not info.is_runnable:
        raise ModelNotRunnableError(f"{info.name} can't run here: {info.why_not_runnable}")
    return snapshot


def complaint(snapshot: Snapshot, reason: str) -> str:
    """Say what is wrong with a model: it is damaged, or the user may not read it."""
    is_refused = snapshot.problem or any(file.is_refused for file in snapshot.files)
    is_refused = is_refused or "can't be read (" in reason
    verdict = "can't be read" if is_refused else "is damaged"
    return f"{snapshot.name} {verdict}: {reason}"


def repair_hint(snapshot: Snapshot, reason: str, ref: ModelRef) -> str | None:
    """Return what repairs the unhealthy model that a model argument names; None where nothing is known to help."""
    if snapshot.roots is None or not isinstance(ref, Repo):
        return None
    command = names.pull_command(snapshot.name, ref.revision)
    if command is None or reason.endswith(IN_ICLOUD):
        return None
    if not _may_be_changed(snapshot.roots[-1], snapshot.path):
        return NOT_OURS
    return ON_THE_HUB if _is_as_downloaded(snapshot, reason) else f"Repair it with: {command}"


def _may_be_changed(model: str, snapshot: str) -> bool:
    """Whether the user may write where a pull of the model would."""
    inner = [os.path.join(model, name) for name in ("blobs", "snapshots", "refs")]
    folders = (model, *(folder for folder in (*inner, snapshot) if os.path.lexists(folder)))
    return all(os.access(folder, os.R_OK | os.W_OK | os.X_OK) for folder in folders)


def _is_as_downloaded(snapshot: Snapshot, reason: str) -> bool:
    """Whether the file that a reason is about has the bytes that the hub has: then no pull changes it."""
    file = snapshot.file_of(reason)
    if file is None or file.problem or file.size > MAX_HASHED_BYTES or file not in checksums.hashed_files(snapshot):
        return False
    try:
        return checksums.digest(file, lambda _: None) == file.blob
    except BrokenFile:
        return False
