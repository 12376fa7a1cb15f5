"""Disconnects: work for a client ends at once when the client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block when the client disconnects, and raise ClientDisconnect; the body must have been read before."""
    task = asyncio.current_task()
    has_disconnected = False

    async def watch() -> None:
        nonlocal has_disconnected
        while (await receive())["type"] != "http.disconnect":
            pass
        has_disconnected = True
        if task is not None:
            task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        # As in asyncio.timeout: a cancellation by other code is raised again.
        if has_disconnected and task is not None and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        watcher.cancel()


class EventStream(Response):
    """Server-sent events; `close` is called when they end, for whatever reason."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncIterator[bytes], close: Callable[[], object]) -> None:
        self.status_code = 200
        self.background = None
        self._close = close
        self._frames = frames
        # Proxies must send each event at once, and keep none.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the events until the last one, or until the client disconnects."""
        try:
            with suppress(ClientDisconnect):
                async with while_connected(receive):
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    async for frame in self._frames:
                        await send({"type": "http.response.body", "body": frame, "more_body": True})
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()
