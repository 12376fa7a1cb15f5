"""`list`: the models in the cache."""

from __future__ import annotations

import gc
import os
from argparse import Namespace
from typing import TYPE_CHECKING

from mlxk2.cache.index import Memory, memory_file
from mlxk2.cache.store import Cache, CachedModel, absence, find_cache_dir
from mlxk2.errors import ModelNotFoundError

if TYPE_CHECKING:
    from mlxk2.spec import ListData, ModelObject


def run(args: Namespace) -> ListData:
    """All models whose name contains the pattern, by name, with their health and whether they run here."""
    pattern = (args.pattern or "").lower()
    cache = Cache(find_cache_dir(os.environ))
    memory = Memory(memory_file(cache.path, os.environ))
    # Headers and configs become many objects without a cycle: looking for cycles would take a fifth of the time.
    gc.disable()
    try:
        wanted = (model for model in cache.scan() if pattern in model.name.lower())
        models = [found for model in wanted if (found := _described(memory, model))]
    finally:
        gc.enable()
    args.absence = absence(cache, os.environ)
    if args.absence:
        args.streams.warn(args.absence)
    elif not pattern:
        memory.save()
    return {"models": models, "count": len(models)}


def _described(memory: Memory, model: CachedModel) -> ModelObject | None:
    try:
        return memory.describe(model.snapshot)
    except ModelNotFoundError:
        return None  # it was removed since the cache was scanned
