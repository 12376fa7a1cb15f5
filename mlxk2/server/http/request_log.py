"""The log of requests: a line for each, with what it cost; no line has any content, key or header of a request."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlxk2.formatting import cut, printable

if TYPE_CHECKING:
    from mlxk2.server.generation import Generation

LOGGER = logging.getLogger("mlxk2.requests")
# Programs ask for it every few seconds.
HEALTH = "/health"
# The key of a request's state under which its `Work` is.
WORK = "work"
# Characters of a path or a name, which clients may make as long as they like.
_MAX_SHOWN = 200


@dataclass(frozen=True)
class Work:
    """What a request wants of a model: the name that it gave, if any, and its generation, once that has begun."""

    model: str | None
    begun: asyncio.Future[Generation]

    def describe(self) -> str:
        """Return the name of the model, and the tokens of a generation that has ended."""
        if not self.begun.done() or self.begun.cancelled() or self.begun.exception() is not None:
            # As a literal of Python, so that no name looks like the rest of the line.
            return "" if self.model is None else repr(cut(self.model, _MAX_SHOWN))
        generation = self.begun.result()
        usage, name = generation.usage, printable(generation.name)
        if not usage.completion_tokens:
            return name
        return f"{name}, prompt: {usage.prompt_tokens} tokens, answer: {usage.completion_tokens} tokens"


class RequestLog:
    """An ASGI layer that logs a line when the response to a request has been sent, or can't be any more.

    Requests for the state of the server are logged at the level DEBUG, unless `logs_health`.
    """

    def __init__(self, app: ASGIApp, logs_health: bool) -> None:
        self._app = app
        self._logs_health = logs_health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, is_complete = time.monotonic(), 0, False
        state = scope.setdefault("state", {})

        async def watch(message: Message) -> None:
            nonlocal status, is_complete
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                is_complete = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            is_quiet = scope["path"] == HEALTH and not self._logs_health
            path = cut(quote(scope["path"], safe="/", errors="replace"), _MAX_SHOWN)
            # An error that no layer inside this one handles becomes a 500 outside it.
            end = f"{status}{'' if is_complete else ' (not finished)'}" if status else "500"
            line = f"{scope['method']} {path} {end} in {time.monotonic() - began:.2f} s"
            work = state[WORK].describe() if WORK in state else ""
            LOGGER.log(logging.DEBUG if is_quiet else logging.INFO, "%s", f"{line}, {work}" if work else line)
