"""A machine that stays awake while a request is answered that may generate something."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from mlxk2.sleep import NoSleep


class Awake:
    """An ASGI layer that keeps the machine awake while a POST request is answered."""

    def __init__(self, app: ASGIApp, no_sleep: NoSleep) -> None:
        self._app = app
        self._no_sleep = no_sleep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and scope["method"] == "POST":
            with self._no_sleep.held():
                await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, send)
