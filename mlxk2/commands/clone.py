"""`clone`: make a self-contained, editable copy of a model."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from mlxk2 import names
from mlxk2.cache import space
from mlxk2.cache.runnable import ON_THE_HUB, describe_problem, repair_hint
from mlxk2.cache.store import Cache, find_cache_dir
from mlxk2.checkpoint.describe import find_and_describe
from mlxk2.checkpoint.snapshot import Snapshot
from mlxk2.commands.context import Failed, hub_imports
from mlxk2.errors import (
    AccessDeniedError,
    HashNotFoundError,
    HubError,
    MlxkError,
    ModelNotFoundError,
    ModelUnhealthyError,
    OperationError,
    ValidationError,
    cause,
)
from mlxk2.formatting import join_names
from mlxk2.names import Demo, Folder, Repo
from mlxk2.workspace.clone import FINISHED, Method, build, copy_files, resolve_target

if TYPE_CHECKING:
    from mlxk2.commands.context import Context
    from mlxk2.spec import CloneData

TEMPORARY_CACHE = "cache"

Status = Literal["success", "error", "access_denied", "pull_failed", "health_check_failed", "filesystem_error"]

_STATUS: tuple[tuple[type[MlxkError], Status], ...] = (
    (AccessDeniedError, "access_denied"),
    (HubError, "pull_failed"),
    (ModelUnhealthyError, "health_check_failed"),
    (OperationError, "filesystem_error"),
)


class Options(NamedTuple):
    """The model to clone, the target folder, the branch, and whether to accept a damaged model."""

    model: str
    target_dir: str
    branch: str | None
    no_health_check: bool


def run(options: Options, context: Context) -> CloneData:
    """Copy a model into the target folder, from the cache or, if the cache lacks it, from the hub."""
    try:
        with context.no_sleep.hold():
            return _clone(options, context)
    except MlxkError as error:
        status: Status = next((status for kind, status in _STATUS if isinstance(error, kind)), "error")
        raise Failed(error, _data(options, status, error.message)) from error


def _clone(options: Options, context: Context) -> CloneData:
    ref = names.parse(options.model)
    if isinstance(ref, Folder):
        raise ValidationError(f"{ref.path!r} is a folder; `clone` copies models of the cache or the hub.")
    if options.branch is not None:
        if isinstance(ref, Demo) or ref.revision is not None:
            raise ValidationError(f"--branch can't be combined with {options.model!r}, which is one revision.")
        ref = names.parse_repo(f"{ref.name}@{options.branch}")
    cache = Cache(find_cache_dir(context.environment))
    path = resolve_target(options.target_dir, cache.path)
    cached = cache.resolve(ref) if isinstance(ref, Demo) else _find(cache, ref)
    if cached is None:
        assert isinstance(ref, Repo)  # The demo model always exists.
        with hub_imports():
            from mlxk2.hub import client, repos  # noqa: PLC0415 - slow, and most clones come from the cache
            from mlxk2.hub.pull import download  # noqa: PLC0415
        connection = client.connect(context.environment)
        revision = repos.find(connection, ref.name, ref.revision)
    else:
        snapshot = _check(cached, ref, options, is_fresh=False)
    with _translate_disk_errors(options.target_dir), build(path) as scratch:
        if cached is None:
            # Download into a temporary cache, which is removed together with the scratch folder.
            cache_dir = Path(scratch, TEMPORARY_CACHE)
            cache_dir.mkdir()
            download(repos.Source(connection, revision), cache_dir, context.progress, notify=context.streams.warn)
            pulled = Cache(cache_dir).find(revision.repo_id).snapshot_at(revision.commit)
            snapshot = _check(pulled, ref, options, is_fresh=True)
        files = [file for file in snapshot.files if not file.problem]
        folder = os.path.join(scratch, FINISHED)
        method = copy_files(files, folder, context.progress, may_move=cached is None)
    name = snapshot.name
    message = f"Cloned {name} into {options.target_dir}."
    if broken := [file.name for file in snapshot.files if file.problem]:
        message += f" Left out, because they can't be read: {join_names(broken)}."
    return _data(options, "success", message, name if name != ref.name else None, method)


def _find(cache: Cache, ref: Repo) -> Snapshot | None:
    """Return the snapshot in the cache, or None if the cache lacks it.

    A full name must match exactly; it never means another model whose name contains it.
    """
    try:
        if "/" not in ref.name:
            model = cache.find(ref.name)
        else:
            exact = [model for model in cache.find_matches(ref.name) if model.name.lower() == ref.name.lower()]
            if len(exact) != 1:
                return None
            model = exact[0]
        return model.snapshot() if ref.revision is None else model.snapshot_at(ref.revision)
    except (ModelNotFoundError, HashNotFoundError):
        return None


def _check(snapshot: Snapshot, ref: Demo | Repo, options: Options, *, is_fresh: bool) -> Snapshot:
    """Return the snapshot to clone; raise ModelUnhealthyError if it is damaged or has no readable files."""
    snapshot, info = find_and_describe(snapshot.reset)
    remedy = ON_THE_HUB if is_fresh else repair_hint(snapshot, info, ref)
    if not any(not file.problem for file in snapshot.files):
        raise ModelUnhealthyError(f"{snapshot.name} has no files to clone: {info.why_not_runnable}", hint=remedy)
    if not info.is_healthy and not options.no_health_check:
        ways = filter(None, (remedy, "Clone it as it is with: --no-health-check"))
        raise ModelUnhealthyError(describe_problem(info), hint=". ".join(ways))
    return snapshot


@contextmanager
def _translate_disk_errors(typed: str) -> Iterator[None]:
    """Raise OperationError, with the cause, for errors of the disk."""
    try:
        yield
    except OSError as error:
        if error.errno in space.FULL:
            message = f"The disk of {typed} is full."
        elif error.errno == errno.EFBIG:
            message = f"A file of the model is larger than the limit of {typed} (such as `ulimit -f`)."
        else:
            message = f"{typed} can't be written: {cause(error)}."
        raise OperationError(f"{message} The unfinished copy was removed.") from error


def _data(
    options: Options, status: Status, message: str, expanded_name: str | None = None, method: Method | None = None
) -> CloneData:
    return {
        "model": options.model,
        "clone_status": status,
        "message": message,
        "target_dir": options.target_dir,
        "expanded_name": expanded_name,
        "method": method,
    }
