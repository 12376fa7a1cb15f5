"""A client that disconnects at any moment of its request: nothing of the request is left, and the server works."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, MutableMapping
from typing import Any

import pytest
from conftest_runner import ScriptedBackend, tokens_of
from support.application import ScriptedPreparing

from mlxk2.server.app import Service, create_app
from mlxk2.server.catalog import Catalog
from mlxk2.server.http.access import Access
from mlxk2.server.messages import ModelKey
from mlxk2.server.openai.api import OPENAI
from mlxk2.server.pool import ModelPool
from mlxk2.server.scheduler import Limits, Scheduler
from mlxk2.server.worker import Worker

MODEL = ModelKey("scripted", "/models/scripted")
ANSWER = "Paris, and nothing else. "


class Request:
    """A request whose client disconnects when `gone` is set; `sent` has the messages of the server."""

    def __init__(self, *, stream: bool) -> None:
        content = {"messages": [{"role": "user", "content": "Where?"}], "stream": stream}
        self.gone = asyncio.Event()
        self.sent: list[MutableMapping[str, Any]] = []
        self._body = json.dumps(content).encode()
        self._is_read = False

    async def receive(self) -> dict[str, Any]:
        """Return the body, then the disconnect once `gone` is set."""
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Record a message of the response; the end of the response is also a disconnect, as in a server."""
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.gone.set()

    @property
    def scope(self) -> dict[str, Any]:
        """Return the ASGI scope of the request."""
        path = "/v1/chat/completions"
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": {},
        }

    @property
    def text(self) -> str:
        """Return the whole body of the response."""
        return b"".join(message.get("body", b"") for message in self.sent).decode()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def _disconnect_after(app: Any, steps: int, request: Request) -> None:
    """Disconnect the client after this many steps of the loop; fail unless the request then ends by itself."""
    task = asyncio.create_task(app(request.scope, request.receive, request.send))
    for _ in range(steps):
        await asyncio.sleep(0)
    request.gone.set()
    async with asyncio.timeout(10):
        await task
    assert task.cancelling() == 0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_a_disconnect_at_any_step_of_the_event_loop_is_cleaned_up(stream: bool) -> None:
    async def test() -> None:
        models: list[ScriptedBackend] = []

        def load(_: ModelKey, unload: Callable[[], None]) -> ScriptedBackend:
            unload()
            models.append(ScriptedBackend(lambda _: tokens_of(ANSWER * 20)))
            return models[-1]

        worker = Worker(load, 2)
        scheduler = Scheduler(ModelPool(worker), worker, Limits(2, 2))
        app = create_app(
            Service(scheduler, Catalog("/nowhere", (MODEL.name, MODEL)), ScriptedPreparing([])), Access(), [OPENAI]
        )
        tasks = asyncio.all_tasks()
        try:
            for steps in [*range(80), *range(80, 2000, 60)]:
                request = Request(stream=stream)
                await _disconnect_after(app, steps, request)
                await _until(lambda: scheduler.active == scheduler.queued == 0)
                await _until(lambda: not any(len(rows) for model in models for rows in model.batches))
                last = Request(stream=stream)
                await app(last.scope, last.receive, last.send)
                assert last.sent[0]["status"] == 200 and "Paris" in last.text
            assert len(models) == 1
            await _until(lambda: asyncio.all_tasks() == tasks)
        finally:
            scheduler.close()

    asyncio.run(asyncio.wait_for(test(), 100))
