"""The hub's two origins on two ports of the loopback, in one thread."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Event, Thread

import uvicorn
from fastapi import APIRouter, FastAPI
from support.hub import reading, writing, xet
from support.hub.access import Refusal, refuse
from support.hub.faults import App, Faults, Gate
from support.hub.log import Log
from support.hub.repos import Blob, Hub, Repo, is_large

HOST = "127.0.0.1"
START_SECONDS = 10


class HubServer:
    """A hub that a test fills; `folder` holds its Xet store."""

    def __init__(self, folder: Path) -> None:
        self.hub = Hub()
        self.log = Log()
        self.faults = Faults()
        self._store = xet.Store(folder / "xet")
        self.hub.in_store = self._store.find
        self._sockets = [_listen(0), _listen(0)]
        self._ports = [sock.getsockname()[1] for sock in self._sockets]
        self._servers: list[uvicorn.Server] = []
        self._thread: Thread | None = None

    @property
    def url(self) -> str:
        """Return the address for HF_ENDPOINT."""
        return f"http://{HOST}:{self._ports[0]}"

    @property
    def cdn_url(self) -> str:
        """Return the address of the other origin, which serves large files."""
        return f"http://{HOST}:{self._ports[1]}"

    def __enter__(self) -> HubServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def add(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        branch: str = "main",
        removed: Iterable[str] = (),
        message: str = "change",
        private: bool = False,
        gated: bool = False,
        readers: Iterable[str] = (),
        is_xet: bool = False,
    ) -> str:
        """Commit files to a branch of a repo and return the new commit; create the repo if it is missing."""
        repo = self.hub.repos.setdefault(repo_id, Repo(repo_id))
        repo.private, repo.gated = private, gated
        repo.readers |= set(readers)
        old = repo.find(branch) or repo.find("main")
        new = dict(old.files) if old else {}
        new |= {name: self._blob(name, data, is_xet) for name, data in files.items()}
        return repo.commit({n: b for n, b in new.items() if n not in set(removed)}, branch, message).oid

    def token(self, user: str) -> str:
        """Return a new token of a user."""
        token = f"hf_{secrets.token_hex(16)}"
        self.hub.tokens[token] = user
        return token

    def rename(self, old: str, new: str) -> None:
        """Give a repo another id; requests for the old one are redirected."""
        repo = self.hub.repos.pop(old)
        repo.repo_id = new
        self.hub.repos[new] = repo
        self.hub.renamed[old] = new

    def start(self) -> None:
        """Start serving, on the same ports as before, and wait until the hub responds."""
        started = Event()
        if not self._sockets:
            self._sockets = [_listen(port) for port in self._ports]
        self._thread = Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True)
        self._thread.start()
        if not started.wait(START_SECONDS):
            raise TimeoutError("the hub did not start")

    def stop(self) -> None:
        """Stop serving and close all open connections."""
        self._end()
        if self._thread is not None:
            self._thread.join()

    def _end(self) -> None:
        for server in self._servers:
            server.should_exit = server.force_exit = True

    def _blob(self, name: str, data: bytes, is_xet: bool) -> Blob:
        large = is_large(name, data)
        return Blob(data, large, self._store.put(data) if large and is_xet else None)

    async def _serve(self, started: Event) -> None:
        hub = _app(
            reading.Reading(self.hub, self.cdn_url).router,
            writing.Writing(self.hub, self.url, self.cdn_url).router,
            xet.routes(self.hub, self._store),
        )
        cdn = _app(reading.objects(self.hub), writing.uploads(self.hub))
        gates = [Gate(hub, "hub", self.log, self.faults, self._end), Gate(cdn, "cdn", self.log, self.faults, self._end)]
        self._servers = [_server(gate) for gate in gates]
        sockets, self._sockets = self._sockets, []
        serving = [s.serve([sock]) for s, sock in zip(self._servers, sockets, strict=True)]
        running = asyncio.gather(*serving)
        while not all(server.started for server in self._servers):
            await asyncio.sleep(0.01)
        started.set()
        await running
        for server in self._servers:
            for connection in list(server.server_state.connections):
                # Without this, a connection whose client has stopped reading stays open until it is garbage collected.
                connection.transport.abort()
        # The loop's next round closes them.
        await asyncio.sleep(0)
        for sock in sockets:
            sock.close()


def _listen(port: int) -> socket.socket:
    # Only for sockets with an explicit protocol does asyncio turn off Nagle's delay of 40 ms.
    listening = socket.socket(proto=socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((HOST, port))
    return listening


def _app(*routers: APIRouter) -> App:
    app = FastAPI(openapi_url=None)
    app.add_exception_handler(Refusal, refuse)
    for router in routers:
        app.include_router(router)
    return app


def _server(gate: Gate) -> uvicorn.Server:
    config = uvicorn.Config(
        gate,
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        # From Python 3.12 on, closing a server waits for its connections without a time limit.
        timeout_graceful_shutdown=0,
    )
    return uvicorn.Server(config)
