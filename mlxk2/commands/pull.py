"""`pull`: download a model from the hub into the cache, or update or repair it there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from mlxk2 import names
from mlxk2.cache.store import Cache, find_cache_dir
from mlxk2.commands.context import Failed, hub_imports
from mlxk2.errors import AccessDeniedError, HubError, MlxkError

if TYPE_CHECKING:
    from mlxk2.commands.context import Context
    from mlxk2.spec import PullData

Status = Literal["success", "already_exists", "access_denied", "failed", "error"]


class Options(NamedTuple):
    """The model to pull; with `force`, check every file by its hash."""

    model: str
    force: bool


def run(options: Options, context: Context) -> PullData:
    """Download the missing and damaged files of a model; raise Failed when the hub or the disk fails."""
    name, revision = names.require_repo(
        options.model,
        if_demo="`demo` comes with mlxk2 and needs no download. Try: mlxk2 run demo",
        if_folder="`pull` needs the name of a model on the hub, as org/model.",
    )
    cache = Cache(find_cache_dir(context.environment))
    try:
        with hub_imports():
            from mlxk2.hub.client import connect  # noqa: PLC0415 - slow, and a wrong argument is reported without it
            from mlxk2.hub.pull import pull  # noqa: PLC0415
        connection = connect(context.environment)
        notify, force = context.streams.warn, options.force
        with context.no_sleep.hold():
            done = pull(connection, cache, name, revision, context.progress, notify=notify, force=force)
    except MlxkError as error:
        status: Status = "failed" if isinstance(error, HubError) else "error"
        if isinstance(error, AccessDeniedError):  # It is a HubError too, but has its own status.
            status = "access_denied"
        raise Failed(error, _data(options, status, error.message)) from error
    return _data(options, "success" if done.changed else "already_exists", done.message, done.repo_id, done.commit)


def _data(
    options: Options, status: Status, message: str, name: str | None = None, commit: str | None = None
) -> PullData:
    """Return the data; the full name and the commit are known only after a success."""
    return {
        "model": options.model,
        "download_status": status,
        "message": message,
        "expanded_name": name,
        "commit_hash": commit,
    }
