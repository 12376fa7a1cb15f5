"""The log of requests: a line for each, with its time and tokens, without content, keys or headers."""

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
# Monitoring programs request this path every few seconds.
HEALTH = "/health"
# The key of `Work` in a request's state.
WORK = "work"
# Clients can make a path or a name as long as they like.
_MAX_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Work:
    """The work for a request: the model name in it, if any, and its generation as soon as that has begun."""

    model: str | None
    begun: asyncio.Future[Generation]

    def describe(self) -> str:
        """Return the name of the model, and the tokens of a generation that has ended."""
        if not self.begun.done() or self.begun.cancelled() or self.begun.exception() is not None:
            # The quotes of repr separate the name from the rest of the line.
            return "" if self.model is None else repr(cut(self.model, _MAX_SHOWN_CHARACTERS))
        generation = self.begun.result()
        usage, name = generation.usage, printable(generation.name)
        if not usage.completion_tokens:
            return name
        return f"{name}, prompt: {usage.prompt_tokens} tokens, answer: {usage.completion_tokens} tokens"


class RequestLog:
    """An ASGI layer that logs a line when the response to a request has been sent or was given up.

    Requests for the state of the server are logged at the level DEBUG, unless `logs_health`.
    """

    def __init__(self, app: ASGIApp, logs_health: bool) -> None:
        self._app = app
        self._logs_health = logs_health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and log a line when its response has been sent."""
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
            path = cut(quote(scope["path"], safe="/", errors="replace"), _MAX_SHOWN_CHARACTERS)
            # If no inner layer handled an error, an outer layer responds with 500.
            end = f"{status}{'' if is_complete else ' (not finished)'}" if status else "500"
            line = f"{scope['method']} {path} {end} in {time.monotonic() - began:.2f} s"
            work = state[WORK].describe() if WORK in state else ""
            LOGGER.log(logging.DEBUG if is_quiet else logging.INFO, "%s", f"{line}, {work}" if work else line)
