"""The preparing pool: it turns what clients send into token ids, in threads without MLX, before the model is loaded."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mlxk2.errors import MlxkError, OperationCancelled, ServerBusyError, ServerStoppingError
from mlxk2.runner.mlx import loader
from mlxk2.runner.output.text import Vocabulary
from mlxk2.runner.prompt.confined import Cancelled, Starter
from mlxk2.runner.prompt.tokenizer import Tokenizer
from mlxk2.runner.request import GenerationRequest, token_budget
from mlxk2.server.messages import ModelKey
from mlxk2.server.scheduler import FairQueue, QueuedRequest

# Models whose tokenizers stay loaded.
MAX_MODELS = 2
# Prompts prepared at the same time: of one model, and of one client for one model. A client can't use all of a model's
# processes.
MAX_PER_MODEL = 4
MAX_PER_CLIENT = 2
MAX_THREADS = 12
# Seconds between two checks whether a request still waits for the tokenizer that another request loads.
_CANCEL_CHECK_SECONDS = 0.1
# Seconds between two checks whether the files of a model have changed.
_FILE_CHECK_SECONDS = 1.0
_WEIGHTS = (".safetensors", ".gguf", ".bin")


class PromptModel(Protocol):
    """The parts of a model that its prompts need."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, with its chat template."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What the model's tokens mean."""

    @property
    def context_length(self) -> int | None:
        """How many tokens the model can hold; None if its files do not say it."""


# Turn a valid body into requests for a model, of which only the tokenizer is loaded.
MakeRequests = Callable[[PromptModel], Sequence[GenerationRequest]]


class Prepared(NamedTuple):
    """The requests to generate, and what the model's tokens mean."""

    requests: Sequence[GenerationRequest]
    vocabulary: Vocabulary


class Preparer(Protocol):
    """Prepares the prompts of requests."""

    async def prepare(self, key: ModelKey, make: MakeRequests, client: Hashable = None) -> Prepared:
        """Return the requests that a client's body makes for a model."""


class _LoadedTokenizer(NamedTuple):
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    context_length: int | None


class PreparingPool:
    """Prepare prompts in threads, and in a few processes for each model; clients take turns.

    At most `limit` requests are prepared or wait for that. One more, and the client with the most waiting requests has
    one refused. `context_length` is that of each model, in place of the one in its files. `prepare` is for the thread
    of the event loop.
    """

    def __init__(self, starter: Starter, limit: int, context_length: int | None = None) -> None:
        self._starter = starter
        self._limit = limit
        self._is_stopping = False
        self._tasks: set[asyncio.Future[Prepared]] = set()
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="prompts")
        self._queue = FairQueue()
        self._started: set[QueuedRequest] = set()
        self._tokenizers = _Tokenizers(starter, context_length)

    async def prepare(self, key: ModelKey, make: MakeRequests, client: Hashable = None) -> Prepared:
        """Return the requests that a client's body makes for a model; raise the error of the body or of the tokenizer.

        Cancelling this ends the process that works on it.
        """
        if self._is_stopping:
            raise ServerStoppingError
        task = asyncio.ensure_future(self._prepare_in_turn(key, make, client))
        self._tasks.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self._is_stopping:
                raise ServerStoppingError from None
            raise
        finally:
            self._tasks.discard(task)

    async def _prepare_in_turn(self, key: ModelKey, make: MakeRequests, client: Hashable) -> Prepared:
        cancelled = threading.Event()
        # The request may be started or refused while this task is being cancelled.
        turn: asyncio.Queue[MlxkError | None] = asyncio.Queue()
        request = QueuedRequest(key, 1, partial(turn.put_nowait, None), turn.put_nowait, client)
        self._queue.add(request)
        if len(self._queue) + len(self._started) > self._limit:
            refused = self._queue.pick_refused(client)
            self._queue.remove(refused)
            refused.refuse(ServerBusyError(self._limit))
        self._admit()
        try:
            if refusal := await turn.get():
                raise refusal
            job = self._threads.submit(self._prepare, key, make, cancelled.is_set)
            return await asyncio.wrap_future(job)
        finally:
            cancelled.set()
            self._started.discard(request)
            if request in self._queue:
                self._queue.remove(request)
            self._admit()

    def _admit(self) -> None:
        for request in self._queue:
            clients = [other.client for other in self._started if other.key.path == request.key.path]
            if len(clients) < MAX_PER_MODEL and clients.count(request.client) < MAX_PER_CLIENT:
                self._started.add(self._queue.take(request))
                request.start()

    def _prepare(self, key: ModelKey, make: MakeRequests, cancelled: Cancelled) -> Prepared:
        """Make the requests, in a thread of the pool; raise each fault as an Exception, which a future can carry."""
        try:
            model = self._tokenizers.get(key, cancelled)
            requests = make(model._replace(tokenizer=model.tokenizer.cancellable(cancelled)))
            for request in requests:
                token_budget(request, model.context_length)
            return Prepared(requests, model.vocabulary)
        except BaseException as fault:
            if isinstance(fault, Exception) and not isinstance(fault, StopIteration):
                raise
            # A panic of a Rust library would end the event loop; a future refuses StopIteration.
            raise RuntimeError(f"{type(fault).__name__}: {fault}") from fault.__cause__

    def tokenizer(self, key: ModelKey) -> tuple[Tokenizer, Vocabulary]:
        """Return the tokenizer of a model that is being loaded; any thread may call this."""
        model = self._tokenizers.get(key, bool)
        return model.tokenizer, model.vocabulary

    def stop(self) -> None:
        """Accept no more requests, and end those that wait or are being prepared with an error."""
        self._is_stopping = True
        for task in self._tasks:
            task.cancel()

    def close(self) -> None:
        """End all processes; let the threads end after their current jobs."""
        self._starter.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Tokenizers:
    """The loaded tokenizers; the one that was not used for the longest time is dropped first."""

    def __init__(self, starter: Starter, context_length: int | None) -> None:
        self._starter = starter
        self._context_length = context_length
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._models: OrderedDict[str, tuple[object, _LoadedTokenizer]] = OrderedDict()
        self._states: dict[str, tuple[float, object]] = {}

    def get(self, key: ModelKey, cancelled: Cancelled) -> _LoadedTokenizer:
        """Return the tokenizer of a model; load it if it is not loaded, or if its files have changed.

        Raise OperationCancelled if the request is `cancelled` while another one loads the same tokenizer, so that its
        thread is free again.
        """
        with self._lock:
            lock = self._locks.setdefault(key.path, threading.Lock())
        state = self._state(key.path)
        if found := self._find(key.path, state):
            return found
        while not lock.acquire(timeout=_CANCEL_CHECK_SECONDS):
            if cancelled():
                raise OperationCancelled("Interrupted.")
        try:
            # Another request may have loaded it by now.
            if found := self._find(key.path, state):
                return found
            folder = Path(key.path)
            config = loader.read_config(folder, key.name)
            tokenizer, vocabulary = loader.load_vocabulary(folder, key.name, config, self._starter, cancelled)
            context_length = self._context_length or loader.context_of(folder, key.name)
            model = _LoadedTokenizer(tokenizer, vocabulary, context_length)
            self._keep(key.path, state, model)
            return model
        finally:
            lock.release()

    def _state(self, path: str) -> object:
        """Return a value that changes with the files of a folder, None if they can't be read; read it once a second."""
        read_at, state = self._states.get(path, (0.0, None))
        if state is not None and time.monotonic() - read_at <= _FILE_CHECK_SECONDS:
            return state
        try:
            # The weights have no influence on the tokenizer.
            files = sorted(entry.name for entry in os.scandir(path) if not entry.name.endswith(_WEIGHTS))
            stats = [os.stat(os.path.join(path, name)) for name in files]
        except OSError:
            state = None
        else:
            state = tuple(files), tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)
        self._states[path] = (time.monotonic(), state)
        return state

    def _find(self, path: str, state: object) -> _LoadedTokenizer | None:
        with self._lock:
            loaded_state, model = self._models.get(path, (None, None))
            # The files of a model in memory may have been removed: then it has no state.
            if model is None or (state is not None and loaded_state != state):
                return None
            self._models.move_to_end(path)
            return model

    def _keep(self, path: str, state: object, model: _LoadedTokenizer) -> None:
        with self._lock:
            dropped = [self._models.pop(path)[1]] if path in self._models else []
            self._models[path] = (state, model)
            if len(self._models) > MAX_MODELS:
                oldest, (_, other) = self._models.popitem(last=False)
                self._locks.pop(oldest, None)
                self._states.pop(oldest, None)
                dropped.append(other)
        for other in dropped:
            # A request that still uses it starts a process again.
            other.tokenizer.close()
