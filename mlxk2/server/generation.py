"""The chunks of one request on their way from the worker's thread to whoever sends them on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from mlxk2.errors import OperationError
from mlxk2.runner.runner import Chunk, Session

# A reader this many chunks of each answer behind has stopped reading.
MOST_WAITING = 4096

Part = tuple[int, Chunk]


class Reply:
    """The answers to one request: an asynchronous iterator over lists of (number of the answer, chunk).

    `name` is the model's, `count` how many answers there are. Raises what made an answer fail. `close` gives back what
    the request holds, however far it came.
    """

    def __init__(self, name: str, count: int, on_close: Callable[[Reply], None]) -> None:
        self.name = name
        self.count = count
        self.sessions: list[Session] = []
        self._unfinished = count
        self._parts: list[Part] = []
        self._arrived = asyncio.Event()
        self._error: Exception | None = None
        self._on_close: Callable[[Reply], None] | None = on_close

    def put(self, number: int, chunk: Chunk) -> None:
        """Take the next chunk of an answer; the last one of all gives back what the request holds."""
        if self.is_closed:
            # Of a step that was under way: after an error it would leave a gap.
            return
        self._unfinished -= chunk.finish_reason is not None
        error = self.sessions[number].error
        if error is not None:
            self.fail(error)
        elif len(self._parts) < MOST_WAITING * self.count:
            self._parts.append((number, chunk))
            self._arrived.set()
        else:
            self.fail(OperationError("The answer was given up: nobody reads it."))
        if not self._unfinished:
            self.close()

    def fail(self, error: Exception) -> None:
        """End all the answers with an error, after what has come of them."""
        self._error = self._error or error
        self._arrived.set()
        self.close()

    def close(self) -> None:
        """Stop what is still being generated and give back the slots; more than once is fine."""
        if self._on_close is not None:
            on_close, self._on_close = self._on_close, None
            on_close(self)

    @property
    def is_closed(self) -> bool:
        """Whether nothing is generated for it any more."""
        return self._on_close is None

    def __aiter__(self) -> Reply:
        return self

    async def __anext__(self) -> list[Part]:
        while not self._parts:
            if self._error is not None:
                raise self._error
            if not self._unfinished:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        parts, self._parts = self._parts, []
        return parts

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all prompts; several answers to one prompt share it."""
        return sum(len(session.request.prompt) for session in self._prompts)

    @property
    def cached_tokens(self) -> int:
        """How many of the prompts' tokens were not computed again."""
        return sum(session.cached_tokens for session in self._prompts)

    @property
    def completion_tokens(self) -> int:
        """The tokens generated so far, in all answers."""
        return sum(session.tokens for session in self.sessions)

    @property
    def _prompts(self) -> Collection[Session]:
        """The first session of every prompt."""
        return {id(session.request.prompt): session for session in reversed(self.sessions)}.values()
