"""The events of one request, on their way from the worker's thread to the code that sends the response."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from mlxk2.errors import OperationError
from mlxk2.runner.sequences import Chunk, Sequence

# Events of each sequence. A client that is this far behind has stopped reading.
MAX_WAITING_EVENTS = 4096

# The number of the sequence, and what it generated.
Event = tuple[int, Chunk]


class Generation:
    """The sequences of one request: an asynchronous iterator over lists of events. Iterating raises their error.

    `name` is the name of the model, `count` the number of sequences. `close` gives back what the request holds, at any
    time.
    """

    def __init__(self, name: str, count: int, on_close: Callable[[Generation], None]) -> None:
        self.name = name
        self.count = count
        self.sequences: list[Sequence] = []
        self._unfinished = count
        self._events: list[Event] = []
        self._arrived = asyncio.Event()
        self._error: Exception | None = None
        self._on_close: Callable[[Generation], None] | None = on_close

    def put(self, number: int, chunk: Chunk) -> None:
        """Add the next event of a sequence; the last event of all sequences closes the generation."""
        if self.is_closed:
            # A step that was under way gave this event. After an error it would leave a gap.
            return
        self._unfinished -= chunk.finish_reason is not None
        error = self.sequences[number].error
        if error is not None:
            self.fail(error)
        elif len(self._events) < MAX_WAITING_EVENTS * self.count:
            self._events.append((number, chunk))
            self._arrived.set()
        else:
            self.fail(OperationError("The response was cancelled because the client does not read it."))
        if not self._unfinished:
            self.close()

    def fail(self, error: Exception) -> None:
        """End all sequences with an error, which is raised after the events that came before."""
        self._error = self._error or error
        self._arrived.set()
        self.close()

    def close(self) -> None:
        """Stop the sequences and give back their slots; calling it again has no effect."""
        if self._on_close is not None:
            on_close, self._on_close = self._on_close, None
            on_close(self)

    @property
    def is_closed(self) -> bool:
        """Whether the sequences have ended or were stopped."""
        return self._on_close is None

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> list[Event]:
        while not self._events:
            if self._error is not None:
                raise self._error
            if not self._unfinished:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        events, self._events = self._events, []
        return events

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all prompts; a prompt of several sequences counts once."""
        return sum(len(sequence.request.prompt) for sequence in self._prompts)

    @property
    def cached_tokens(self) -> int:
        """How many tokens of the prompts came from the prompt cache."""
        return sum(sequence.cached_tokens for sequence in self._prompts)

    @property
    def completion_tokens(self) -> int:
        """The tokens that all sequences have generated so far."""
        return sum(sequence.tokens for sequence in self.sequences)

    @property
    def _prompts(self) -> Collection[Sequence]:
        """The first sequence of each prompt."""
        return {id(sequence.request.prompt): sequence for sequence in reversed(self.sequences)}.values()
