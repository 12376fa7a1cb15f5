"""Which snapshot a model argument means, given that it is to run."""

from __future__ import annotations

from mlxk2.cache.describe import describe
from mlxk2.cache.store import Cache, Snapshot, repair_hint
from mlxk2.errors import ModelNotRunnableError, ModelUnhealthyError


def runnable(cache: Cache, argument: str) -> Snapshot:
    """Return the snapshot that the argument names, if its files are whole and mlx-lm knows what to do with them.

    Raises NotFoundError, ModelUnhealthyError or ModelNotRunnableError, each with what to do about it.
    """
    snapshot = cache.resolve(argument)
    model = describe(snapshot)
    if model["health"] == "unhealthy":
        hint = repair_hint(snapshot, argument)
        raise ModelUnhealthyError(f"{model['name']} is damaged: {model['reason']}", hint=hint)
    if not model["runtime_compatible"]:
        raise ModelNotRunnableError(f"{model['name']} can't run here: {model['reason']}")
    return snapshot
