"""`pull`: a model from the hub into the cache; one that is there is updated, repaired, or left alone."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING, Literal

from mlxk2 import names
from mlxk2.cache.store import Cache, find_cache_dir
from mlxk2.errors import AccessDeniedError, HubError, MlxkError, ValidationError
from mlxk2.fence import import_hub
from mlxk2.names import Demo, Folder, Repo
from mlxk2.spec import PullData

if TYPE_CHECKING:
    from mlxk2.hub.pull import Outcome

Status = Literal["success", "already_exists", "access_denied", "failed", "error"]


def run(args: Namespace) -> PullData:
    """Download what is missing or damaged of a model; what the hub or the disk refuses is raised."""
    name, revision = _parse(args.model)
    cache = Cache(find_cache_dir(os.environ))
    try:
        # The hub's room is slow to import, and says itself when the environment forbids it.
        with args.no_sleep.held():
            done: Outcome = import_hub("mlxk2.hub.pull").update(
                cache, name, revision, args.progress, notify=args.streams.warn, force=args.force
            )
    except MlxkError as error:
        error.data = {**_data(args, _status(error), error.message)}
        raise
    return _data(args, "success" if done.changed else "already_exists", done.message, done.repo_id, done.commit)


def _parse(argument: str) -> Repo:
    """Return the repo that an argument names; raise ValidationError for the demo and for folders."""
    match names.parse(argument):
        case Repo() as repo:
            return repo
        case Demo():
            raise ValidationError("`demo` comes with mlxk2, there is nothing to download. Try: mlxk2 run demo")
        case Folder(path):
            raise ValidationError(f"{path!r} is a folder; `pull` takes the name of a model on the hub, as org/model.")


def _status(error: MlxkError) -> Status:
    if isinstance(error, AccessDeniedError):
        return "access_denied"
    return "failed" if isinstance(error, HubError) else "error"


def _data(
    args: Namespace, status: Status, message: str, name: str | None = None, commit: str | None = None
) -> PullData:
    return {
        "model": args.model,
        "download_status": status,
        "message": message,
        "expanded_name": name,
        "commit_hash": commit,
    }
