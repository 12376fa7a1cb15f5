"""The models that requests can use: those in the cache, the demo, and the model that the server was started with."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from mlxk2 import names
from mlxk2.cache.index import SETTLED_NS, fingerprint
from mlxk2.cache.runnable import resolve_runnable
from mlxk2.cache.store import DEMO_FOLDER, Cache, CachedModel
from mlxk2.checkpoint.describe import context_length, find_and_describe
from mlxk2.checkpoint.snapshot import Snapshot
from mlxk2.errors import ModelNotFoundError, ValidationError
from mlxk2.runner.prompt.confined import IsCancelled, never_cancelled
from mlxk2.server.messages import ModelKey

MAX_NAMES = 256  # Remembered names of models, so that a request for the model in memory does not read the disk.
MAX_ENTRIES = 50_000  # Remembered entries, of a few hundred bytes each.
MAX_THREADS = 4
# The list of models is remembered only so long, because the target of a link can change without the cache's folder.
_LIST_SECONDS = 5.0


class ServedModel(NamedTuple):
    """A model that can run here, with the time of its last change in seconds since 1970, and its context in tokens."""

    name: str
    last_modified: int
    context_length: int | None


class Catalog:
    """Find the models of a cache folder by name.

    `pinned` is the name that the user typed at the start of the server, and its key. `context_length` replaces the
    context length in the files of each model.
    """

    def __init__(
        self, cache_dir: str, pinned: tuple[str, ModelKey] | None = None, context_length: int | None = None
    ) -> None:
        self._cache_dir = cache_dir
        self.pinned = pinned[1] if pinned else None
        self._context_length = context_length
        self._pinned_names: frozenset[str] = frozenset()
        if pinned:
            typed, key = pinned
            # The name of the demo always means the demo, even if the pinned model's folder has the same name.
            is_demo = os.path.realpath(key.path) == os.path.realpath(DEMO_FOLDER)
            self._pinned_names = frozenset({typed, key.name}) - (frozenset() if is_demo else {names.DEMO})
        self._names: dict[str, ModelKey] = {}
        self._lists: _Lists = {}
        self._entries: dict[tuple[object, ...], tuple[str, ServedModel | None]] = {}
        # Several threads, so that finding one model does not wait for a scan of all models.
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="catalog")
        self._scan: _Scan | None = None

    async def all(self) -> list[ServedModel]:
        """Return `entries` from a thread; callers share one scan, which is cancelled when all callers have left."""
        if self._scan is None or self._scan.is_over:
            self._scan = _Scan(self._threads, self.entries)
        return await self._scan.result()

    async def one(self, name: str) -> ServedModel:
        """Return the `entry` of a name from a thread."""
        return await asyncio.wrap_future(self._threads.submit(self.entry, name))

    async def search(self, name: str) -> ModelKey:
        """Find a model in a thread, as `find` does."""
        return await asyncio.wrap_future(self._threads.submit(self.find, name))

    def default(self, loaded: ModelKey | None) -> ModelKey:
        """Return the model for a request without a name: the pinned model, or the one in memory."""
        if key := self.pinned or loaded:
            return key
        raise ValidationError("The request names no model, and none is loaded.")

    def known(self, name: str, loaded: ModelKey | None) -> ModelKey | None:
        """Return the model that a name means, or None if the disk must be read to know it."""
        if name in self._pinned_names:
            return self.pinned
        key = self._names.get(name)
        return key if key is not None and key == loaded else None

    def find(self, name: str) -> ModelKey:
        """Return the model that a name means; raise NotFoundError, or ModelError if it can't run."""
        ref = names.parse(name)
        if isinstance(ref, names.Folder):
            # Clients must not be able to explore the disk.
            raise ModelNotFoundError(f"Model {name!r} is not in the cache.")
        snapshot = resolve_runnable(_ListedCache(self._cache_dir, self._lists), ref)
        # The pinned model keeps its adapter when a request uses another of its names.
        is_pinned = self.pinned is not None and self.pinned.path == snapshot.path
        key = self.pinned if self.pinned and is_pinned else ModelKey(snapshot.name, snapshot.path)
        if len(self._names) >= MAX_NAMES:
            self._names.clear()
        self._names[name] = key
        return key

    def entries(self, is_cancelled: IsCancelled = never_cancelled) -> list[ServedModel]:
        """Return all models that can run here: first the demo, then by name; stop when `is_cancelled` returns true."""
        return list(self._describe(lambda _: True, is_cancelled).values())

    def entry(self, name: str) -> ServedModel:
        """Return the model with exactly this name, without reading others; raise ModelNotFoundError without one."""
        found = self._describe(lambda other: other == name)
        if name not in found:
            raise ModelNotFoundError(f"Model {name!r} is not among the models that can run here.")
        return found[name]

    def _describe(
        self, is_wanted: Callable[[str], bool], is_cancelled: IsCancelled = never_cancelled
    ) -> dict[str, ServedModel]:
        cache = _ListedCache(self._cache_dir, self._lists)
        finders = [lambda: cache.resolve(names.Demo())] if is_wanted(names.DEMO) else []
        finders += [model.snapshot for model in cache.scan() if is_wanted(model.name)]
        found = {entry.name: entry for find in finders if not is_cancelled() and (entry := self._entry(find))}
        if self.pinned and is_wanted(self.pinned.name) and self.pinned.name not in found:
            snapshot = Snapshot(self.pinned.name, None, self.pinned.path, roots=None)
            pinned = self._entry(snapshot.reset)
            found.update({pinned.name: pinned} if pinned else {})
        return found

    def _entry(self, find: Callable[[], Snapshot]) -> ServedModel | None:
        """Return the entry of a model, or None if it can't run; remember it until its folder changes."""
        try:
            snapshot = find()
        except ModelNotFoundError:
            return None  # It was removed after the scan.
        mark = fingerprint(snapshot)
        known = self._entries.get(snapshot.key)
        if mark is not None and known is not None and known[0] == mark:
            return known[1]
        entry = _entry(find, self._context_length)
        if mark is not None:
            if len(self._entries) >= MAX_ENTRIES:
                self._entries.clear()
            self._entries[snapshot.key] = (mark, entry)
        return entry


# By cache folder: the end of the time in which the list is valid, the time of the folder's last change, and the list.
_Lists = dict[str, tuple[float, int, list[CachedModel]]]


class _ListedCache(Cache):
    """A cache that remembers its list of models in `lists` for some seconds, or until its folder changes."""

    def __init__(self, cache_dir: str, lists: _Lists) -> None:
        super().__init__(cache_dir)
        self._lists = lists

    def scan(self) -> list[CachedModel]:
        """Return the models of the cache, perhaps from memory."""
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
    """A scan of all models in a thread, for all callers that wait for it."""

    def __init__(self, threads: ThreadPoolExecutor, entries: Callable[[IsCancelled], list[ServedModel]]) -> None:
        self._cancelled = threading.Event()
        self._callers = 0
        self._job = asyncio.wrap_future(threads.submit(entries, self._cancelled.is_set))

    @property
    def is_over(self) -> bool:
        """Whether the scan has ended or was cancelled."""
        return self._job.done() or self._cancelled.is_set()

    async def result(self) -> list[ServedModel]:
        """Wait for the result; cancel the scan if all callers have left."""
        self._callers += 1
        try:
            return await asyncio.shield(self._job)
        finally:
            self._callers -= 1
            if not self._callers:
                self._cancelled.set()


def _entry(find: Callable[[], Snapshot], context: int | None) -> ServedModel | None:
    try:
        snapshot, info = find_and_describe(find)
    except ModelNotFoundError:
        return None  # It was removed after the scan.
    if not info.is_runnable:
        return None
    return ServedModel(info.name, info.modified, context or context_length(snapshot))
