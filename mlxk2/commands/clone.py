"""`clone`: a self-contained, editable copy of a model."""

from __future__ import annotations

import errno
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from mlxk2 import names
from mlxk2.cache import space
from mlxk2.cache.runnable import ON_THE_HUB, complaint, repair_hint
from mlxk2.cache.store import Cache, CachedModel, find_cache_dir
from mlxk2.checkpoint.describe import look
from mlxk2.checkpoint.snapshot import Contents, Snapshot
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
from mlxk2.fence import import_hub
from mlxk2.formatting import listed
from mlxk2.names import Demo, Repo
from mlxk2.spec import CloneData
from mlxk2.workspace import target
from mlxk2.workspace.copy import Method, copy_files

if TYPE_CHECKING:
    from mlxk2.hub.client import Connection
    from mlxk2.hub.repos import Revision
    from mlxk2.progress import Progress

TEMPORARY_HUB = "hub"

Status = Literal["success", "error", "access_denied", "pull_failed", "health_check_failed", "filesystem_error"]

_STATUS: tuple[tuple[type[MlxkError], Status], ...] = (
    (AccessDeniedError, "access_denied"),
    (HubError, "pull_failed"),
    (ModelUnhealthyError, "health_check_failed"),
    (OperationError, "filesystem_error"),
)


class OnHub(NamedTuple):
    """A model that is not in the cache."""

    connection: Connection
    revision: Revision


def run(args: Namespace) -> CloneData:
    """Copy the model that the arguments name into the target folder, from the cache or, if need be, from the hub."""
    try:
        with args.no_sleep.held():
            return _clone(args)
    except MlxkError as error:
        error.data = {**_data(args, _status_of(error), error.message)}
        raise


def _status_of(error: MlxkError) -> Status:
    return next((status for kind, status in _STATUS if isinstance(error, kind)), "error")


def _clone(args: Namespace) -> CloneData:
    wanted = _parse(args)
    cache = Cache(find_cache_dir(os.environ))
    path = target.checked(args.target_dir, cache.path)
    source = _cached(cache, wanted) or _on_hub(wanted)
    contents = None if isinstance(source, OnHub) else _checked(source, wanted, args, is_fresh=False)
    progress: Progress = args.progress
    with _explained(args.target_dir), target.built(path) as scratch:
        if isinstance(source, OnHub):
            contents = _checked(_pulled(source, scratch, progress, args), wanted, args, is_fresh=True)
        assert contents is not None
        files = [file for file in contents.files if not file.problem]
        place = os.path.join(scratch, target.FINISHED)
        method = copy_files(files, place, progress, may_move=isinstance(source, OnHub))
    return _cloned(args, wanted, contents, method)


def _parse(args: Namespace) -> Demo | Repo:
    """Return the model that the arguments name; raise ValidationError for folders, and for two revisions."""
    ref = names.parse(args.model)
    if isinstance(ref, names.Folder):
        raise ValidationError(f"{args.model!r} is a folder; `clone` copies models of the cache or the hub.")
    if args.branch is None:
        return ref
    if isinstance(ref, Demo) or ref.revision is not None:
        raise ValidationError(f"--branch can't be combined with {args.model!r}, which is one revision.")
    return names.parse_repo(f"{ref.name}@{args.branch}")


def _cached(cache: Cache, wanted: Demo | Repo) -> Snapshot | None:
    """The snapshot in the cache that is meant, or None when it is not there."""
    if isinstance(wanted, Demo):
        return cache.resolve(wanted)
    try:
        model = _find(cache, wanted.name)
        return model.snapshot() if wanted.revision is None else model.snapshot_at(wanted.revision)
    except (ModelNotFoundError, HashNotFoundError):
        return None


def _find(cache: Cache, name: str) -> CachedModel:
    """As `Cache.find`, but a full name means that model alone: another one that contains it is not what is wanted."""
    if "/" not in name:
        return cache.find(name)
    exact = [model for model in cache.matching(name) if model.name.lower() == name.lower()]
    if len(exact) != 1:
        raise ModelNotFoundError(f"Model {name!r} is not in the cache.")
    return exact[0]


def _on_hub(wanted: Demo | Repo) -> OnHub:
    assert isinstance(wanted, Repo)  # the demo is always there
    connection = import_hub("mlxk2.hub.client").connect()
    return OnHub(connection, import_hub("mlxk2.hub.repos").find(connection, wanted.name, wanted.revision))


def _pulled(source: OnHub, scratch: str, progress: Progress, args: Namespace) -> Snapshot:
    """The model's snapshot in a cache of its own, which goes with the scratch folder."""
    hub = Path(scratch, TEMPORARY_HUB)
    hub.mkdir()
    download = import_hub("mlxk2.hub.download").download
    download(source.connection, source.revision, hub, progress, notify=args.streams.warn)
    return Cache(hub).find(source.revision.repo_id).snapshot_at(source.revision.commit)


def _checked(snapshot: Snapshot, wanted: Demo | Repo, args: Namespace, *, is_fresh: bool) -> Contents:
    """The contents of a snapshot; ModelUnhealthyError when they are damaged and that matters, or there are none."""
    contents, model = look(lambda: snapshot)
    reason = model["reason"] or ""
    remedy = ON_THE_HUB if is_fresh else repair_hint(contents, reason, wanted)
    if not any(not file.problem for file in contents.files):
        raise ModelUnhealthyError(f"There is nothing to clone of {snapshot.name}: {model['reason']}", hint=remedy)
    if model["health"] == "unhealthy" and not args.no_health_check:
        ways = filter(None, (remedy, "Clone it as it is with: --no-health-check"))
        raise ModelUnhealthyError(complaint(contents, reason), hint=". ".join(ways))
    return contents


@contextmanager
def _explained(typed: str) -> Iterator[None]:
    """Faults of the disk as errors of the tree."""
    try:
        yield
    except OSError as error:
        if error.errno in space.FULL:
            message = f"The disk of {typed} is full."
        elif error.errno == errno.EFBIG:
            message = f"A file of the model is larger than {typed} may hold (a limit such as `ulimit -f`)."
        else:
            message = f"{typed} can't be written: {cause(error)}."
        raise OperationError(f"{message} Nothing was left there.") from error


def _cloned(args: Namespace, wanted: Demo | Repo, contents: Contents, method: Method) -> CloneData:
    name = contents.snapshot.name
    message = f"Cloned {name} into {args.target_dir}."
    broken = [file.name for file in contents.files if file.problem]
    if broken:
        message += f" Left out, since there is nothing behind them: {listed(broken)}."
    return _data(args, "success", message, name if name != wanted.name else None, method)


def _data(
    args: Namespace, status: Status, message: str, expanded_name: str | None = None, method: Method | None = None
) -> CloneData:
    return {
        "model": args.model,
        "clone_status": status,
        "message": message,
        "target_dir": args.target_dir,
        "expanded_name": expanded_name,
        "method": method,
    }
