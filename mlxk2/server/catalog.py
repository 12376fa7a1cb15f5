"""The models that requests may name: those of the cache, the demo, and the one that the server was started with."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime

from mlxk2.cache import naming
from mlxk2.cache.describe import look
from mlxk2.cache.runnable import runnable
from mlxk2.cache.store import DEMO_FOLDER, Cache, Snapshot, hub_folder
from mlxk2.errors import ModelNotFoundError, ValidationError
from mlxk2.runner import params
from mlxk2.server.answers import Model
from mlxk2.server.engine import Target

# Names that led to the model in memory, and save the next request a look at the disk.
_MOST_NAMES = 256


class Catalog:
    """Finds models by name; `pinned` is the model the server was started with, under the name that was typed for it."""

    def __init__(self, pinned: tuple[str, Target] | None = None) -> None:
        self._pinned = pinned
        self._pinned_names = _names_of(*pinned) if pinned else frozenset()
        self._names: dict[str, Target] = {}

    def default(self, loaded: Target | None) -> Target:
        """Return the model for a request that names none: the one of the start, else the one in memory."""
        if target := (self._pinned[1] if self._pinned else loaded):
            return target
        raise ValidationError("The request names no model, and none is loaded.")

    def is_pinned(self, target: Target | None) -> bool:
        """Whether this is the model that the server was started with."""
        return self._pinned is not None and target == self._pinned[1]

    def known(self, name: str, loaded: Target | None) -> Target | None:
        """Return the target of a name if no disk is needed to tell."""
        if self._pinned and name in self._pinned_names:
            return self._pinned[1]
        target = self._names.get(name)
        return target if target is not None and target == loaded else None

    def find(self, name: str) -> Target:
        """Return the model that a name means; raise NotFoundError, or ModelError for one that can't run."""
        snapshot = _resolve(name)
        # By whatever name, the model of the start has its adapter.
        pinned = self._pinned[1] if self._pinned and self._pinned[1].path == snapshot.path else None
        target = pinned or Target(snapshot.name, snapshot.path)
        if len(self._names) >= _MOST_NAMES:
            self._names.clear()
        self._names[name] = target
        return target

    def entries(self) -> list[Model]:
        """Return all models that can run here, the demo first, then by name."""
        return list(self._described(lambda _: True).values())

    def entry(self, name: str) -> Model:
        """Return one model by its exact name, without a look at the others; raise ModelNotFoundError."""
        found = self._described(lambda other: other == name)
        if name not in found:
            raise ModelNotFoundError(f"Model {name!r} is not among the models that can run here.")
        return found[name]

    def _described(self, is_wanted: Callable[[str], bool]) -> dict[str, Model]:
        cache = Cache(hub_folder(os.environ))
        finders = [lambda: cache.resolve(naming.DEMO)] if is_wanted(naming.DEMO) else []
        finders += [model.snapshot for model in cache.scan() if is_wanted(model.name)]
        found = {entry.id: entry for find in finders if (entry := _entry(find))}
        if self._pinned and is_wanted(self._pinned[1].name) and self._pinned[1].name not in found:
            snapshot = Snapshot(self._pinned[1].name, None, self._pinned[1].path, roots=None)
            pinned = _entry(lambda: snapshot)
            found.update({pinned.id: pinned} if pinned else {})
        return found


def _names_of(typed: str, target: Target) -> frozenset[str]:
    """Return what the model of the start is called: a user's folder by the name of the demo is not meant by it."""
    is_demo = os.path.realpath(target.path) == os.path.realpath(DEMO_FOLDER)
    return frozenset({typed, target.name}) - (frozenset() if is_demo else {naming.DEMO})


def _resolve(name: str) -> Snapshot:
    if naming.is_path(name):
        # A client may not look around on the disk.
        raise ModelNotFoundError(f"Model {name!r} is not in the cache.")
    return runnable(Cache(hub_folder(os.environ)), name)


def _entry(find: Callable[[], Snapshot]) -> Model | None:
    try:
        contents, model = look(find)
    except ModelNotFoundError:
        return None  # it was removed since the cache was scanned
    if not model["runtime_compatible"]:
        return None
    owner, _, _ = model["name"].rpartition("/")
    return Model(
        id=model["name"],
        object="model",
        created=int(datetime.fromisoformat(model["last_modified"]).timestamp()),
        owned_by=owner or "mlxk2",
        context_length=params.context_length(contents.config_or_empty),
    )
