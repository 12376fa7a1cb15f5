"""The preparing pool: convert prompts to token ids, in threads without MLX, before the model is loaded."""

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
from mlxk2.formatting import reason_of
from mlxk2.runner.mlx import loader
from mlxk2.runner.output.text import Vocabulary
from mlxk2.runner.prompt.confined import IsCancelled, Starter, never_cancelled
from mlxk2.runner.prompt.tokenizer import Tokenizer
from mlxk2.runner.request import GenerationRequest, token_budget
from mlxk2.server.messages import ModelKey
from mlxk2.server.scheduler import FairQueue, QueuedRequest

MAX_MODELS = 2  # Models whose tokenizers stay loaded.
# Prompts prepared at the same time for one model, and for one client of it. So a client can't use all processes.
MAX_PER_MODEL = 4
MAX_PER_CLIENT = 2
MAX_THREADS = 12
# While a request waits for a tokenizer that another request loads, the time between two checks for cancellation.
_CANCEL_CHECK_SECONDS = 0.1
_FILE_CHECK_SECONDS = 1.0  # Between two checks for changes of a model's files.
_WEIGHTS = (".safetensors", ".gguf", ".bin")


class PromptModel(Protocol):
    """The parts of a model that are needed to make prompts."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, with its chat template."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary."""

    @property
    def context_length(self) -> int | None:
        """The context length in tokens, or None if the model's files do not have it."""


# Makes requests for a model from a valid body; only the model's tokenizer is loaded.
MakeRequests = Callable[[PromptModel], Sequence[GenerationRequest]]


class Prepared(NamedTuple):
    """The requests to generate, and the model's vocabulary."""

    requests: Sequence[GenerationRequest]
    vocabulary: Vocabulary


class Preparer(Protocol):
    """Prepares the prompts of requests."""

    async def prepare(self, key: ModelKey, make: MakeRequests, client: Hashable = None) -> Prepared:
        """Return the requests that `make` returns for a model."""


class _LoadedTokenizer(NamedTuple):
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    context_length: int | None


class PreparingPool:
    """Prepares prompts in threads, and in a few processes for each model; clients take turns.

    At most `limit` requests are being prepared or wait. If one more comes, refuse one of the client with the most
    waiting requests. `context_length` replaces the one in the files of each model. Call `prepare` in the thread of the
    event loop.
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
        """Return the requests that `make` returns for a model; raise the errors of `make` and of the tokenizer.

        Cancelling this coroutine ends the process that works on the prompt.
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
        # A queue, because the request can be started or refused while this task is being cancelled.
        turn: asyncio.Queue[MlxkError | None] = asyncio.Queue()
        request = QueuedRequest(key, 1, partial(turn.put_nowait, None), turn.put_nowait, client)
        self._queue.add(request)
        if len(self._queue) + len(self._started) > self._limit:
            refused = self._queue.pick_request_to_refuse(client)
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

    def _prepare(self, key: ModelKey, make: MakeRequests, is_cancelled: IsCancelled) -> Prepared:
        """Make the requests in a thread of the pool; raise every error as an Exception, which a future can carry."""
        try:
            model = self._tokenizers.get(key, is_cancelled)
            requests = make(model._replace(tokenizer=model.tokenizer.cancellable(is_cancelled)))
            for request in requests:
                token_budget(request, model.context_length)
            return Prepared(requests, model.vocabulary)
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, StopIteration):
                raise
            # A panic of a Rust library would end the event loop, and a future can't carry StopIteration.
            raise RuntimeError(f"{type(error).__name__}: {reason_of(error)}") from error.__cause__

    def tokenizer(self, key: ModelKey) -> tuple[Tokenizer, Vocabulary]:
        """Return the tokenizer of a model that is being loaded; any thread may call this."""
        model = self._tokenizers.get(key, never_cancelled)
        return model.tokenizer, model.vocabulary

    def stop(self) -> None:
        """Accept no more requests, and end all requests that wait or are being prepared with an error."""
        self._is_stopping = True
        for task in self._tasks:
            task.cancel()

    def close(self) -> None:
        """End all processes, and let the threads end after their current jobs."""
        self._starter.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Tokenizers:
    """The loaded tokenizers; the least recently used one is dropped first."""

    def __init__(self, starter: Starter, context_length: int | None) -> None:
        self._starter = starter
        self._context_length = context_length
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._models: OrderedDict[str, tuple[object, _LoadedTokenizer]] = OrderedDict()
        self._states: dict[str, tuple[float, object]] = {}

    def get(self, key: ModelKey, is_cancelled: IsCancelled) -> _LoadedTokenizer:
        """Return the tokenizer of a model; load it first if it is not loaded or if its files have changed.

        Raise OperationCancelled if the request is cancelled while another one loads the same tokenizer, to free the
        thread.
        """
        with self._lock:
            lock = self._locks.setdefault(key.path, threading.Lock())
        state = self._state(key.path)
        if found := self._find(key.path, state):
            return found
        while not lock.acquire(timeout=_CANCEL_CHECK_SECONDS):
            if is_cancelled():
                raise OperationCancelled("Interrupted.")
        try:
            # Another request can have loaded it while this one waited for the lock.
            if found := self._find(key.path, state):
                return found
            folder = Path(key.path)
            config = loader.read_config(folder, key.name)
            tokenizer, vocabulary = loader.load_vocabulary(folder, key.name, config, self._starter, is_cancelled)
            context_length = self._context_length or loader.context_of(folder, key.name)
            model = _LoadedTokenizer(tokenizer, vocabulary, context_length)
            self._keep(key.path, state, model)
            return model
        finally:
            lock.release()

    def _state(self, path: str) -> object:
        """Return a value that changes with a folder's files, or None if they can't be read; check once a second."""
        read_at, state = self._states.get(path, (0.0, None))
        if state is not None and time.monotonic() - read_at <= _FILE_CHECK_SECONDS:
            return state
        try:
            # Ignore weights, which do not affect the tokenizer.
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
            # A state of None means that the files were removed; the model in memory still works.
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
            # If a request still uses it, the request starts a new process.
            other.tokenizer.close()
