"""Which snapshot a model argument means, given that it is to run."""

from __future__ import annotations

from mlxk2.cache import repair
from mlxk2.cache.describe import look
from mlxk2.cache.store import Cache, Snapshot
from mlxk2.errors import ModelNotRunnableError, ModelUnhealthyError


def runnable(cache: Cache, argument: str) -> Snapshot:
    """Return the snapshot that the argument names, if its files are whole and mlx-lm knows what to do with them.

    Raises NotFoundError, ModelUnhealthyError or ModelNotRunnableError, each with what to do about it.
    """
    contents, model = look(lambda: cache.resolve(argument))
    if model["health"] == "unhealthy":
        reason = model["reason"] or ""
        raise ModelUnhealthyError(repair.complaint(contents, reason), hint=repair.hint(contents, reason, argument))
    if not model["runtime_compatible"]:
        raise ModelNotRunnableError(f"{model['name']} can't run here: {model['reason']}")
    return contents.snapshot
