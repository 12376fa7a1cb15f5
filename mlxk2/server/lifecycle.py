"""The server's life: the port, the model of the start, signals, the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from mlxk2.errors import InterruptedByUser, MlxkError, ServerStoppingError
from mlxk2.runner.mlx import cpu, loader
from mlxk2.runner.mlx.memory import NOTHING_CHOSEN, Chosen, give_back
from mlxk2.runner.prompt.confined import Starter
from mlxk2.runner.runner import MLXRunner
from mlxk2.runner.sequences import Backend
from mlxk2.server.app import Service, create_app
from mlxk2.server.catalog import Catalog
from mlxk2.server.engine import Engine, Limits, Target
from mlxk2.server.http.access import Access
from mlxk2.server.http.connection import Connection
from mlxk2.server.http.listener import BACKLOG
from mlxk2.server.preparing import Preparers
from mlxk2.server.worker import Worker
from mlxk2.sleep import NoSleep

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds an idle connection is kept for the client's next request.
_KEEP_ALIVE = 60
# Seconds after which connections that still did not end are cut off, and all that is left of the process.
_GRACE = 2.0
_LONGEST_END = 4.0
# Seconds after an answer until the machine may fall asleep.
_LINGER = 10.0
# Clients whose leaving frees memory worth returning to the system.
_CROWD = 64


# Ends the process with an exit code, whatever its threads are doing.
Leave = Callable[[int], object]


@dataclass(frozen=True)
class Settings:
    """How to serve; `pinned` is the model of the start under the name that was typed for it.

    `patience` is how many seconds a connection may stand still in the middle of something.
    """

    access: Access
    limits: Limits
    pinned: tuple[str, Target] | None = None
    max_tokens: int | None = None
    context_length: int | None = None
    log_level: str = "info"
    logs_requests: bool = False
    patience: float = 30.0
    memory: Chosen = NOTHING_CHOSEN


@dataclass(frozen=True)
class Life:
    """What happens at the start and at the end: `preload` is the first model."""

    announce: Callable[[], None]
    leave: Leave
    preload: Target | None


class _Server(uvicorn.Server):
    """uvicorn's server, which loads a model at the start and ends its streams with a mark."""

    def __init__(self, config: uvicorn.Config, engine: Engine, preparers: Preparers, life: Life) -> None:
        super().__init__(config)
        self.stopped_by: int | None = None
        self.failure: MlxkError | None = None
        self._engine = engine
        self._preparers = preparers
        self._life = life
        self._preloading: asyncio.Task[None] | None = None
        self._most_clients = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if parent := multiprocessing.parent_process():
            asyncio.get_running_loop().add_reader(parent.sentinel, self._be_orphaned, parent.sentinel)
        self._life.announce()
        if self._life.preload is not None:
            self._preloading = asyncio.create_task(self._preload(self._life.preload))

    def _be_orphaned(self, sentinel: int) -> None:
        asyncio.get_running_loop().remove_reader(sentinel)
        self.should_exit = True

    async def _preload(self, target: Target) -> None:
        try:
            await self._engine.preload(target)
        except ServerStoppingError:
            return
        except MlxkError as error:
            self.failure = error
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        clients = len(self.server_state.connections)
        self._most_clients = max(self._most_clients, clients)
        if self._most_clients >= _CROWD and clients <= self._most_clients // 2:
            self._most_clients = clients
            cpu.trim()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # A model that is being loaded, or a long step, can't be called off.
        end = threading.Timer(_LONGEST_END, self._life.leave, [self.exit_code])
        end.daemon = True
        end.start()
        self._preparers.stop()
        self._engine.stop()
        asyncio.get_running_loop().call_later(_GRACE, self._cut_off)
        await super().shutdown(sockets)

    @property
    def exit_code(self) -> int:
        """What the process is to end with."""
        if self.failure is not None:
            return self.failure.exit_code
        return InterruptedByUser.exit_code if self.stopped_by == signal.SIGINT else 0

    def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # For good: the process ends with the server.
        for number in _SIGNALS:
            signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        self.stopped_by = self.stopped_by or sig
        self.should_exit = True
        # A second Ctrl-C ends the process at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def serve(settings: Settings, listener: socket.socket, announce: Callable[[], None], leave: Leave) -> None:
    """Serve until a signal comes, or the model of the start can't be loaded; then `leave` with the exit code.

    `announce` is called as soon as the port answers.
    """
    cpu.give_memory_back()
    starter = Starter(keeps_spare=True)
    starter.prepare()
    preparers = Preparers(starter, settings.limits.max_concurrent + settings.limits.max_queue, settings.context_length)
    load = partial(_load, settings, preparers)
    engine = Engine(load, Worker(partial(_runner, settings), rest=give_back), settings.limits)
    no_sleep = NoSleep(linger=_LINGER)
    catalog = Catalog(settings.pinned, settings.context_length)
    service = Service(engine, catalog, preparers, settings.max_tokens, no_sleep=no_sleep)
    app = create_app(service, settings.access)
    pinned = settings.pinned[1] if settings.pinned else None
    server = _Server(_config(app, settings), engine, preparers, Life(announce, leave, pinned))
    server.run(sockets=[listener])
    engine.close()
    preparers.close()
    if server.failure is not None:
        # The data was printed when the port answered; a second document on stdout would be one too many.
        logging.critical(server.failure.message)
    # Not by way of the interpreter's end: there, a thread of MLX that is ending too may abort the process.
    leave(server.exit_code)


def _runner(settings: Settings, model: Backend) -> MLXRunner:
    return MLXRunner(model, prompt_cache_bytes=model.prompt_cache_bytes, max_rows=settings.limits.max_concurrent)


def _load(settings: Settings, preparers: Preparers, target: Target, unload: Callable[[], None]) -> Backend:
    model = loader.load(
        target.path,
        target.adapter,
        name=target.name,
        chosen=settings.memory,
        for_batches=True,
        read=partial(preparers.tokenizer, target),
        context=settings.context_length,
        unload=unload,
    )
    if settings.pinned is not None and target == settings.pinned[1]:
        model.warm_up()
    return model


def _config(app: Any, settings: Settings) -> uvicorn.Config:
    _log_at(settings.log_level.upper(), logs_requests=settings.logs_requests)
    return uvicorn.Config(
        app,
        http=partial(Connection, patience=settings.patience),  # type: ignore[arg-type] # a class is only called
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=settings.logs_requests,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE,
    )


def _log_at(level: str, *, logs_requests: bool) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    if logs_requests:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    if level != "DEBUG":
        # What it says of its own start and end is said already.
        logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLevelName(level)))
