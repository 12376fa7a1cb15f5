"""`list`: list the models in the cache."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from mlxk2.cache.index import ListIndex, index_file
from mlxk2.cache.store import Cache, describe_missing_cache, find_cache_dir
from mlxk2.errors import ModelNotFoundError

if TYPE_CHECKING:
    from mlxk2.commands.context import Context
    from mlxk2.spec import ListData, ModelObject


class Options(NamedTuple):
    """Which models to list, and what a table for people shows of them.

    Models match by a part of their names. The table has MLX chat models; with `verbose` all MLX models, with `all`
    every model. `health` adds whether a model is intact and runs here. The JSON document always has all of it.
    """

    pattern: str | None
    all: bool
    health: bool
    verbose: bool


def run(options: Options, context: Context) -> ListData:
    """Return all models whose name contains the pattern, by name, with their health and whether they run here."""
    pattern = (options.pattern or "").lower()
    cache = Cache(find_cache_dir(context.environment))
    index = ListIndex(index_file(cache.path, context.environment))
    models: list[ModelObject] = []
    # Headers and configs become many objects without a cycle: looking for cycles would take a fifth of the time.
    gc.disable()
    try:
        for model in cache.scan():
            if pattern in model.name.lower():
                # A model may be removed after the cache was scanned.
                with suppress(ModelNotFoundError):
                    info = index.describe(model.snapshot)
                    from mlxk2.spec import model_object  # noqa: PLC0415 - slow, and an empty cache needs no types

                    models.append(model_object(info))
    finally:
        gc.enable()
    if missing := describe_missing_cache(context.environment):
        context.streams.warn(missing)
    elif not pattern:
        index.save()
    return {"models": models, "count": len(models)}
