"""Paths as clients write them: with a slash at the end, or two in a row where an address and a path were joined."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send


class Paths:
    """An ASGI layer that gives the routes each path in its plain form, so that no client is redirected."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http":
            scope = {**scope, "path": plain(scope["path"])}
        await self._app(scope, receive, send)


def plain(path: str) -> str:
    """Return a path without slashes that mean nothing; one of slashes alone stays as it is."""
    return re.sub("//+", "/", path).rstrip("/") or path
