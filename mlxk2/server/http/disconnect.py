"""Disconnects: stop the work for a client as soon as the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


@asynccontextmanager
async def cancel_on_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block when the client disconnects, and raise ClientDisconnect; read the body before using this."""
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
        # Pass on a cancellation by other code, as asyncio.timeout does.
        if has_disconnected and task is not None and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        watcher.cancel()


class EventStream(Response):
    """A response of server-sent events; it calls `close` when they end for any reason."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncIterator[bytes], close: Callable[[], object]) -> None:
        self.status_code = 200
        self.background = None
        self._close = close
        self._frames = frames
        # Proxies must pass each event on at once, and cache nothing.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send all events, or stop when the client disconnects."""
        try:
            with suppress(ClientDisconnect):
                async with cancel_on_disconnect(receive):
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    async for frame in self._frames:
                        await send({"type": "http.response.body", "body": frame, "more_body": True})
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()
