"""The server's life: the port, the model of the start, signals, the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

import uvicorn

from mlxk2.errors import MlxkError
from mlxk2.runner import backend
from mlxk2.runner.runner import Backend, MLXRunner
from mlxk2.server.app import Service, create_app
from mlxk2.server.catalog import Catalog
from mlxk2.server.connection import Connection
from mlxk2.server.engine import Engine, Limits, Target
from mlxk2.server.guard import Access
from mlxk2.server.listener import BACKLOG
from mlxk2.server.worker import Worker

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds an idle connection is kept for the client's next request.
_KEEP_ALIVE = 60
# Seconds that answers have to say that they end; the contract gives five in all.
_GRACE = 2
_JOIN = 2.0


@dataclass(frozen=True)
class Settings:
    """How to serve; `pinned` is the model of the start under the name that was typed for it."""

    access: Access
    limits: Limits
    prompt_cache_bytes: int
    pinned: tuple[str, Target] | None = None
    max_tokens: int | None = None
    log_level: str = "info"
    logs_requests: bool = False


class _Server(uvicorn.Server):
    """uvicorn's server, which ends its streams with a mark and loads a model at the start."""

    def __init__(
        self, config: uvicorn.Config, engine: Engine, pinned: Target | None, on_start: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.stopped_by: int | None = None
        self.failure: MlxkError | None = None
        self._engine = engine
        self._pinned = pinned
        self._on_start = on_start
        self._preloading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()
        if self._pinned is not None:
            self._preloading = asyncio.create_task(self._preload(self._pinned))

    async def _preload(self, target: Target) -> None:
        try:
            await self._engine.preload(target)
        except MlxkError as error:
            self.failure = error
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.stop()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        self.stopped_by = self.stopped_by or sig
        self.should_exit = True
        # A second Ctrl-C ends the process at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def serve(settings: Settings, listener: socket.socket, announce: Callable[[], None]) -> int | None:
    """Serve until a signal comes, and return it; `announce` is called as soon as the port answers.

    Raises what keeps the model of the start from being loaded.
    """
    worker = Worker(lambda model: _runner(model, settings))
    engine = Engine(_load, worker, settings.limits)
    app = create_app(Service(engine, Catalog(settings.pinned), settings.max_tokens), settings.access)
    pinned = settings.pinned[1] if settings.pinned else None
    server = _Server(_config(app, settings), engine, pinned, announce)
    server.run(sockets=[listener])
    engine.close()
    if not worker.join(_JOIN) and server.stopped_by is not None:
        # A step that takes that long can't be waited for: end as the signal would have ended the process.
        signal.signal(server.stopped_by, signal.SIG_DFL)
        signal.raise_signal(server.stopped_by)
    if server.failure is not None:
        # The data was printed when the port answered; a second document on stdout would be one too many.
        logging.error(server.failure.message)
        server.failure.is_told = True
        raise server.failure
    return server.stopped_by


def _runner(model: Backend, settings: Settings) -> MLXRunner:
    return MLXRunner(
        model, prompt_cache_bytes=settings.prompt_cache_bytes, max_rows=settings.limits.max_concurrent
    )


def _load(target: Target, unload: Callable[[], None]) -> Backend:
    unload()
    return backend.load(target.path, target.adapter, name=target.name)


def _config(app: object, settings: Settings) -> uvicorn.Config:
    level = settings.log_level.upper()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    if level != "DEBUG":
        # What it says of its own start and end is said already.
        logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLevelName(level)))
    return uvicorn.Config(
        app,  # type: ignore[arg-type] # FastAPI's types and uvicorn's differ in names alone
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=settings.logs_requests,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_GRACE,
    )
