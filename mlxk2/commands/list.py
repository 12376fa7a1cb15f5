"""`list`: the models in the cache."""

from __future__ import annotations

import gc
import os
from argparse import Namespace
from typing import TYPE_CHECKING

from mlxk2.cache.describe import describe
from mlxk2.cache.store import Cache, hub_folder

if TYPE_CHECKING:
    from mlxk2.spec import ListData


def run(args: Namespace) -> ListData:
    """All models whose name contains the pattern, by name, with their health and whether they run here."""
    pattern = (args.pattern or "").lower()
    cached = Cache(hub_folder(os.environ)).scan()
    # Headers and configs become many objects without a cycle: looking for cycles would take a fifth of the time.
    gc.disable()
    try:
        models = [describe(model.snapshot()) for model in cached if pattern in model.name.lower()]
    finally:
        gc.enable()
    return {"models": models, "count": len(models)}
