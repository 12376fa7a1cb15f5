"""The models that requests may name: those of the cache, the demo, and the one that the server was started with."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from mlxk2 import names
from mlxk2.cache.index import SETTLED_NS, fingerprint
from mlxk2.cache.runnable import runnable
from mlxk2.cache.store import DEMO_FOLDER, Cache, CachedModel, find_cache_dir
from mlxk2.checkpoint.context import context_length
from mlxk2.checkpoint.describe import look
from mlxk2.checkpoint.snapshot import Snapshot
from mlxk2.errors import ModelNotFoundError, ValidationError
from mlxk2.server.engine import Target
from mlxk2.server.openai.schemas import Model

# Names that led to the model in memory, and save the next request a look at the disk.
_MOST_NAMES = 256
# Entries that are remembered, of a few hundred bytes each.
_MOST_KNOWN = 50_000
_THREADS = 4
# How long the list of models is remembered: what a link leads to may appear without a change of the cache's folder.
_LIST_SECONDS = 5.0


class Catalog:
    """Finds models by name; `pinned` is the model the server was started with, under the name that was typed for it.

    `context` is how many tokens each model holds, whatever its files say.
    """

    def __init__(self, pinned: tuple[str, Target] | None = None, context: int | None = None) -> None:
        self._context = context
        self._pinned = pinned
        self._pinned_names = _names_of(*pinned) if pinned else frozenset()
        self._names: dict[str, Target] = {}
        self._lists: _Lists = {}
        self._known: dict[Snapshot, tuple[str, Model | None]] = {}
        # A look at one model must not wait for a look at all.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="catalog")
        self._scan: _Scan | None = None

    async def all(self) -> list[Model]:
        """Return `entries`: one scan serves all callers that wait for it, and ends when none is left."""
        if self._scan is None or self._scan.is_over:
            self._scan = _Scan(self._threads, self.entries)
        return await self._scan.result()

    async def one(self, name: str) -> Model:
        """Return `entry` of a name, from a thread."""
        return await asyncio.wrap_future(self._threads.submit(self.entry, name))

    async def search(self, name: str) -> Target:
        """Return what `find` does, from a thread."""
        return await asyncio.wrap_future(self._threads.submit(self.find, name))

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
        snapshot = self._resolve(name)
        # By whatever name, the model of the start has its adapter.
        pinned = self._pinned[1] if self._pinned and self._pinned[1].path == snapshot.path else None
        target = pinned or Target(snapshot.name, snapshot.path)
        if len(self._names) >= _MOST_NAMES:
            self._names.clear()
        self._names[name] = target
        return target

    def entries(self, cancelled: Callable[[], bool] = bool) -> list[Model]:
        """Return all models that can run here, the demo first, then by name; or what there is once `cancelled`."""
        return list(self._described(lambda _: True, cancelled).values())

    def entry(self, name: str) -> Model:
        """Return one model by its exact name, without a look at the others; raise ModelNotFoundError."""
        found = self._described(lambda other: other == name)
        if name not in found:
            raise ModelNotFoundError(f"Model {name!r} is not among the models that can run here.")
        return found[name]

    def _described(self, is_wanted: Callable[[str], bool], cancelled: Callable[[], bool] = bool) -> dict[str, Model]:
        cache = _Listed(find_cache_dir(os.environ), self._lists)
        finders = [lambda: cache.resolve(names.Demo())] if is_wanted(names.DEMO) else []
        finders += [model.snapshot for model in cache.scan() if is_wanted(model.name)]
        found = {entry.id: entry for find in finders if not cancelled() and (entry := self._entry(find))}
        if self._pinned and is_wanted(self._pinned[1].name) and self._pinned[1].name not in found:
            snapshot = Snapshot(self._pinned[1].name, None, self._pinned[1].path, roots=None)
            pinned = self._entry(lambda: snapshot)
            found.update({pinned.id: pinned} if pinned else {})
        return found

    def _resolve(self, name: str) -> Snapshot:
        ref = names.parse(name)
        if isinstance(ref, names.Folder):
            # A client may not look around on the disk.
            raise ModelNotFoundError(f"Model {name!r} is not in the cache.")
        return runnable(_Listed(find_cache_dir(os.environ), self._lists), ref)

    def _entry(self, find: Callable[[], Snapshot]) -> Model | None:
        """Return the entry of a model, from memory as long as nothing in its folder changes."""
        try:
            snapshot = find()
        except ModelNotFoundError:
            return None  # it was removed since the cache was scanned
        mark = fingerprint(snapshot)
        known = self._known.get(snapshot)
        if mark is not None and known is not None and known[0] == mark:
            return known[1]
        entry = _entry(find, self._context)
        if mark is not None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[snapshot] = (mark, entry)
        return entry


# By hub folder: until when a list is remembered, the time of the folder's last change, and the list.
_Lists = dict[str, tuple[float, int, list[CachedModel]]]


class _Listed(Cache):
    """A cache whose list of models is remembered in `lists` for some seconds, unless its folder changes."""

    def __init__(self, hub: str, lists: _Lists) -> None:
        super().__init__(hub)
        self._lists = lists

    def scan(self) -> list[CachedModel]:
        """Return what `Cache.scan` does."""
        try:
            changed = os.stat(self.path).st_mtime_ns
        except OSError:
            return super().scan()
        end, before, models = self._lists.get(self.path, (0.0, 0, []))
        if before == changed and time.monotonic() < end:
            return models
        models = super().scan()
        if changed < time.time_ns() - SETTLED_NS:
            self._lists[self.path] = (time.monotonic() + _LIST_SECONDS, changed, models)
        return models


class _Scan:
    """A look at all models, in a thread, for all callers that wait for it."""

    def __init__(self, threads: ThreadPoolExecutor, entries: Callable[[Callable[[], bool]], list[Model]]) -> None:
        self._left = threading.Event()
        self._waiting = 0
        self._job = asyncio.wrap_future(threads.submit(entries, self._left.is_set))

    @property
    def is_over(self) -> bool:
        """Whether it ended, or was called off."""
        return self._job.done() or self._left.is_set()

    async def result(self) -> list[Model]:
        """Wait for the result; the scan is called off when the last caller has gone."""
        self._waiting += 1
        try:
            return await asyncio.shield(self._job)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._left.set()


def _names_of(typed: str, target: Target) -> frozenset[str]:
    """Return what the model of the start is called: a user's folder by the name of the demo is not meant by it."""
    is_demo = os.path.realpath(target.path) == os.path.realpath(DEMO_FOLDER)
    return frozenset({typed, target.name}) - (frozenset() if is_demo else {names.DEMO})


def _entry(find: Callable[[], Snapshot], context: int | None) -> Model | None:
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
        context_length=context or context_length(contents),
    )
