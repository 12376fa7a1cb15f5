"""Start and stop the server: settings, loading the first model, signals, and the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from mlxk2.errors import MlxkError, OperationCancelled, ServerStoppingError
from mlxk2.formatting import printable
from mlxk2.runner.memory import AUTOMATIC, MemoryChoice
from mlxk2.runner.mlx import loader
from mlxk2.runner.mlx.device import release_freed_memory, release_large_arrays_at_once, trim_heap
from mlxk2.runner.prompt.confined import Starter
from mlxk2.runner.sequences import Backend
from mlxk2.server.api import Api, render_error
from mlxk2.server.app import Service, create_app
from mlxk2.server.catalog import Catalog
from mlxk2.server.http.access import Access
from mlxk2.server.http.connection import Connection
from mlxk2.server.http.listener import BACKLOG
from mlxk2.server.http.request_log import LOGGER
from mlxk2.server.messages import ModelKey
from mlxk2.server.openai.api import OPENAI
from mlxk2.server.pool import ModelPool
from mlxk2.server.preparing import PreparingPool
from mlxk2.server.scheduler import Limits, Scheduler
from mlxk2.server.worker import Worker
from mlxk2.sleep import NoSleep

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KEEP_ALIVE_SECONDS = 60  # An idle connection stays open so long for the client's next request.
_CLOSE_SECONDS = 2.0  # After the signal, the server closes connections that are still open.
_EXIT_SECONDS = 4.0  # After the signal, the server ends the process.
_AWAKE_SECONDS = 10.0  # After a response, the machine may fall asleep.
_MIN_CROWD = 64  # When half of so many clients have disconnected, return their memory to the system.

# The APIs of the server; errors of paths without an owner have the form of the first one.
APIS: Sequence[Api] = (OPENAI,)
# Ends the process at once with an exit code, even if threads are running.
Leave = Callable[[int], object]


@dataclass(frozen=True)
class Settings:
    """The settings of a server for the models of a cache folder.

    `pinned` is the name that the user typed for the first model, and its key. `stall_seconds` is how long a connection
    may make no progress during a request or a response.
    """

    cache_dir: str
    access: Access
    limits: Limits
    pinned: tuple[str, ModelKey] | None = None
    max_tokens: int | None = None
    context_length: int | None = None
    log_level: str = "info"
    logs_requests: bool = False
    stall_seconds: float = 30.0
    memory: MemoryChoice = AUTOMATIC


class _Server(uvicorn.Server):
    """uvicorn's server, changed to load a model at the start and to end all generations when it stops."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        preparing: PreparingPool,
        announce: Callable[[], None],
        leave: Leave,
    ) -> None:
        super().__init__(config)
        self.stopped_by: int | None = None
        self.failure: MlxkError | None = None
        self._service = service
        self._preparing = preparing
        self._announce = announce
        self._leave = leave
        self._preloading: asyncio.Task[None] | None = None
        self._max_clients = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if parent := multiprocessing.parent_process():
            asyncio.get_running_loop().add_reader(parent.sentinel, self._stop_without_parent, parent.sentinel)
        self._announce()
        if pinned := self._service.catalog.pinned:
            self._preloading = asyncio.create_task(self._preload(pinned))

    def _stop_without_parent(self, sentinel: int) -> None:
        asyncio.get_running_loop().remove_reader(sentinel)
        self.should_exit = True

    async def _preload(self, key: ModelKey) -> None:
        try:
            await self._service.scheduler.preload(key)
        except ServerStoppingError:
            return
        except MlxkError as error:
            self.failure = error
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        clients = len(self.server_state.connections)
        self._max_clients = max(self._max_clients, clients)
        if self._max_clients >= _MIN_CROWD and clients <= self._max_clients // 2:
            self._max_clients = clients
            trim_heap()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # End the process even while a model is being loaded or a long step runs, which can't be cancelled.
        end = threading.Timer(_EXIT_SECONDS, self.leave)
        end.daemon = True
        end.start()
        self._preparing.stop()
        self._service.scheduler.stop()
        asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._close_connections)
        await super().shutdown(sockets)

    def leave(self) -> None:
        """Log that the server has stopped, and end the process."""
        logging.info("The server has stopped.")
        self._leave(self.exit_code)

    @property
    def exit_code(self) -> int:
        """The exit code of the process."""
        if self.failure is not None:
            return self.failure.exit_code
        return OperationCancelled.exit_code if self.stopped_by == signal.SIGINT else 0

    def _close_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Don't restore the previous handlers, because the process ends with the server.
        for number in _SIGNALS:
            signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        self.stopped_by = self.stopped_by or sig
        self.should_exit = True
        # A second Ctrl-C ends the process at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def serve(settings: Settings, listener: socket.socket, announce: Callable[[], None], leave: Leave) -> None:
    """Serve until a signal comes or loading the first model fails; then call `leave` with the exit code.

    Call `announce` as soon as the port accepts requests.
    """
    release_large_arrays_at_once()
    starter = Starter(keeps_spare=True)
    starter.prepare()
    limits = settings.limits
    preparing = PreparingPool(starter, limits.max_concurrent + limits.max_queue, settings.context_length)
    worker = Worker(partial(_load, settings, preparing), limits.max_concurrent, rest=release_freed_memory)
    scheduler = Scheduler(ModelPool(worker), worker, limits)
    catalog = Catalog(settings.cache_dir, settings.pinned, settings.context_length)
    service = Service(scheduler, catalog, preparing, settings.max_tokens, no_sleep=NoSleep(linger=_AWAKE_SECONDS))
    app = create_app(service, settings.access, APIS, logs_health=settings.logs_requests)
    config = _configure(app, settings)
    server = _Server(config, service, preparing, announce, leave)
    server.run(sockets=[listener])
    scheduler.close()
    preparing.close()
    if server.failure is not None:
        # Log the error: stdout already has one JSON document, printed when the port was open.
        logging.critical(server.failure.message)
    # Don't exit Python normally, because then a thread of MLX that ends at the same time can abort the process.
    server.leave()


def _load(settings: Settings, preparing: PreparingPool, key: ModelKey, unload: Callable[[], None]) -> Backend:
    began = time.monotonic()
    model = loader.load(
        key.path,
        key.adapter,
        name=key.name,
        memory=settings.memory,
        for_batches=True,
        get_tokenizer=partial(preparing.tokenizer, key),
        context=settings.context_length,
        unload=unload,
    )
    if settings.pinned is not None and key == settings.pinned[1]:
        model.warm_up()
    logging.info("Loaded %s in %.2f s", printable(key.name), time.monotonic() - began)
    return model


def _configure(app: Any, settings: Settings) -> uvicorn.Config:
    """Return uvicorn's configuration, and set the levels of the logs."""
    level = settings.log_level.upper()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    if settings.logs_requests:
        LOGGER.setLevel(logging.INFO)
    if level != "DEBUG":
        # Hide uvicorn's messages about start and end, because the program prints its own.
        logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLevelName(level)))
    return uvicorn.Config(
        app,
        http=partial(Connection, stall_seconds=settings.stall_seconds, render=partial(render_error, APIS)),  # type: ignore[arg-type] # a class is only called
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
