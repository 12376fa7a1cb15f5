"""`list`: list the models in the cache."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, NamedTuple

from mlxk2 import names
from mlxk2.cache.index import ListIndex, index_file
from mlxk2.cache.store import Cache, describe_missing_cache, find_cache_dir
from mlxk2.errors import ModelNotFoundError

if TYPE_CHECKING:
    from mlxk2.commands.context import Context
    from mlxk2.spec import ListData, ModelObject


class Options(NamedTuple):
    """The models to list, their order, and the columns of the table for people.

    `pattern` is a part of the models' names, or a glob. `sort` puts the largest or the latest model first, or sorts by
    name. The table has MLX chat models; with `verbose` all MLX models, with `all` every model. `health` adds whether a
    model is intact and runs here. The JSON document always contains everything.
    """

    pattern: str | None
    sort: Literal["name", "size", "modified"]
    all: bool
    health: bool
    verbose: bool


def run(options: Options, context: Context) -> ListData:
    """Return all models that match the pattern, with their health and whether they run here."""
    pattern = options.pattern or ""
    cache = Cache(find_cache_dir(context.environment))
    index = ListIndex(index_file(cache.path, context.environment))
    models: list[ModelObject] = []
    # Headers and configs become many objects, but no cycles; searching for cycles would take a fifth of the time.
    gc.disable()
    try:
        for model in cache.scan():
            if names.is_match(model.name, pattern):
                # A model can be removed after the cache was scanned.
                with suppress(ModelNotFoundError):
                    info = index.describe(model.snapshot)
                    from mlxk2.spec import model_object  # noqa: PLC0415 - slow, and an empty cache does not need it

                    models.append(model_object(info))
    finally:
        gc.enable()
    # Models of the same size or time stay sorted by name.
    if options.sort == "size":
        models.sort(key=lambda model: model["size_bytes"], reverse=True)
    elif options.sort == "modified":
        models.sort(key=lambda model: model["last_modified"], reverse=True)
    if missing := describe_missing_cache(context.environment):
        context.streams.warn(missing)
    elif not pattern:
        index.save()
    return {"models": models, "count": len(models)}
