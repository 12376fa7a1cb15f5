"""Prompts: what clients sent as token ids, before the model is in memory and without the time of others."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mlxk2.errors import InterruptedByUser, MlxkError, ServerBusyError, ServerStoppingError
from mlxk2.runner.mlx import loader
from mlxk2.runner.output.text import Vocabulary
from mlxk2.runner.prompt.confined import Cancelled, Starter
from mlxk2.runner.prompt.tokenizer import Tokenizer
from mlxk2.runner.request import GenerationRequest, token_budget
from mlxk2.server.scheduler import Target, Ticket, Turns
from mlxk2.server.worker import outcome

# Models whose tokenizers are kept, and prompts of one model that are made at the same time: of one client fewer than
# the model may have processes.
_MAX_MODELS = 2
_MAX_OF_ONE = 4
_MAX_OF_CLIENT = 2
# Seconds between two looks at whether the tokenizer that another request loads is still waited for.
_TICK = 0.1
_THREADS = 12
# Seconds between two looks at whether files have changed.
_LOOK_SECONDS = 1.0
_WEIGHTS = (".safetensors", ".gguf", ".bin")

# Turns a checked body into requests for a model, of which only the tokenizer needs to be there.
Make = Callable[[Any], Sequence[GenerationRequest]]


class Prepared(NamedTuple):
    """The requests to generate, and what the model's tokens mean."""

    requests: Sequence[GenerationRequest]
    vocabulary: Vocabulary


class Preparing(Protocol):
    """Makes the prompts of requests."""

    async def prepare(self, target: Target, make: Make, client: Hashable = None) -> Prepared:
        """Return what a client's request asks of a model."""


class Model(NamedTuple):
    """What is needed of a model to make prompts for it."""

    tokenizer: Any
    vocabulary: Vocabulary
    context_length: int | None


class Preparers:
    """The tokenizers of the models that were asked for last, each in processes of its own; clients take turns.

    `limit` is how many requests may be prepared or wait for that: where there are more, the client with the most that
    wait is refused. `context` is how many tokens each model holds, whatever its files say. `prepare` is for the thread
    of the event loop.
    """

    def __init__(self, starter: Starter, limit: int, context: int | None = None) -> None:
        self._starter = starter
        self._limit = limit
        self._is_stopping = False
        self._work: set[asyncio.Future[Prepared]] = set()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="prompts")
        self._waiting = Turns()
        self._started: set[Ticket] = set()
        self._shelf = _Shelf(starter, context)

    async def prepare(self, target: Target, make: Make, client: Hashable = None) -> Prepared:
        """Return what a client's request asks of a model; raise what is wrong with the request or with the tokenizer.

        Cancelling this ends the process that works on it.
        """
        if self._is_stopping:
            raise ServerStoppingError
        work = asyncio.ensure_future(self._in_turn(target, make, client))
        self._work.add(work)
        try:
            return await work
        except asyncio.CancelledError:
            if self._is_stopping:
                raise ServerStoppingError from None
            raise
        finally:
            self._work.discard(work)

    async def _in_turn(self, target: Target, make: Make, client: Hashable) -> Prepared:
        has_gone = threading.Event()
        # It may be started or refused while it is being cancelled.
        turn: asyncio.Queue[MlxkError | None] = asyncio.Queue()
        ticket = Ticket(target, 1, turn.put_nowait, turn.put_nowait, client)
        self._enter(ticket)
        try:
            if refusal := await turn.get():
                raise refusal
            job = self._threads.submit(outcome, self._prepare, target, make, has_gone.is_set)
            return await asyncio.wrap_future(job)
        finally:
            has_gone.set()
            self._leave(ticket)

    def _enter(self, ticket: Ticket) -> None:
        self._waiting.add(ticket)
        if len(self._waiting) + len(self._started) > self._limit:
            refused = self._waiting.last_of_most(ticket.client)
            self._waiting.remove(refused)
            refused.refuse(ServerBusyError(self._limit))
        self._admit()

    def _admit(self) -> None:
        for ticket in self._waiting:
            of_model = [other.client for other in self._started if other.target.path == ticket.target.path]
            if len(of_model) < _MAX_OF_ONE and of_model.count(ticket.client) < _MAX_OF_CLIENT:
                self._started.add(self._waiting.take(ticket))
                ticket.start(None)

    def _leave(self, ticket: Ticket) -> None:
        self._started.discard(ticket)
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        self._admit()

    def stop(self) -> None:
        """Take no more requests, and end those under way with an error."""
        self._is_stopping = True
        for work in self._work:
            work.cancel()

    def _prepare(self, target: Target, make: Make, has_gone: Cancelled) -> Prepared:
        model = self._shelf.model(target, has_gone)
        requests = make(model._replace(tokenizer=model.tokenizer.until(has_gone)))
        for request in requests:
            token_budget(request, model.context_length)
        return Prepared(requests, model.vocabulary)

    def tokenizer(self, target: Target) -> tuple[Tokenizer, Vocabulary]:
        """Return the tokenizer of a model that is being loaded; for any thread."""
        model = self._shelf.model(target, bool)
        return model.tokenizer, model.vocabulary

    def close(self) -> None:
        """End all processes; let the threads end after what they are doing now."""
        self._starter.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Shelf:
    """The models whose tokenizers are loaded; those that were not asked for the longest go first."""

    def __init__(self, starter: Starter, context: int | None) -> None:
        self._starter = starter
        self._context = context
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._models: OrderedDict[str, tuple[object, Model]] = OrderedDict()
        self._states: dict[str, tuple[float, object]] = {}

    def model(self, target: Target, cancelled: Cancelled) -> Model:
        """Return a model, loaded anew if its files have changed."""
        with self._lock:
            lock = self._locks.setdefault(target.path, threading.Lock())
        state = self._state(target.path)
        if found := self._found(target.path, state):
            return found
        with _hold(lock, cancelled):
            # Another request may have loaded it by now.
            if found := self._found(target.path, state):
                return found
            model = self._load(target, cancelled)
            self._keep(target.path, state, model)
        return model

    def _state(self, path: str) -> object:
        """Return `_state_of` a folder, which is looked at once in a second at most."""
        seen, state = self._states.get(path, (0.0, None))
        if state is None or time.monotonic() - seen > _LOOK_SECONDS:
            state = _state_of(path)
            self._states[path] = (time.monotonic(), state)
        return state

    def _found(self, path: str, state: object) -> Model | None:
        with self._lock:
            kept, model = self._models.get(path, (None, None))
            # The files of a model in memory may be gone.
            if model is None or (state is not None and kept != state):
                return None
            self._models.move_to_end(path)
            return model

    def _load(self, target: Target, cancelled: Cancelled) -> Model:
        folder = Path(target.path)
        config = loader.read_config(folder, target.name)
        tokenizer, vocabulary = loader.load_vocabulary(folder, target.name, config, self._starter, cancelled)
        return Model(tokenizer, vocabulary, self._context or loader.context_of(folder, target.name))

    def _keep(self, path: str, state: object, model: Model) -> None:
        with self._lock:
            left = [self._models.pop(path)[1]] if path in self._models else []
            self._models[path] = (state, model)
            if len(self._models) > _MAX_MODELS:
                gone, (_, other) = self._models.popitem(last=False)
                self._locks.pop(gone, None)
                self._states.pop(gone, None)
                left.append(other)
        for unused in left:
            # Where it is still used, it starts a process again.
            unused.tokenizer.close()


@contextmanager
def _hold(lock: threading.Lock, cancelled: Cancelled) -> Iterator[None]:
    """Hold a lock; raise InterruptedByUser where the request is `cancelled` before, so that its thread is free."""
    while not lock.acquire(timeout=_TICK):
        if cancelled():
            raise InterruptedByUser("Interrupted.")
    try:
        yield
    finally:
        lock.release()


def _state_of(path: str) -> object:
    """Return by what unchanged files are recognised; those of weights say nothing of the tokenizer."""
    try:
        entries = sorted(entry.name for entry in os.scandir(path) if not entry.name.endswith(_WEIGHTS))
        states = [os.stat(os.path.join(path, name)) for name in entries]
    except OSError:
        return None
    return tuple(entries), tuple((state.st_ino, state.st_size, state.st_mtime_ns) for state in states)
