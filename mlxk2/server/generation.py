"""The events of one request, between the worker and the code that sends the response."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mlxk2.errors import OperationError
from mlxk2.runner.events import Event, Failed, Finished, Timings, Usage
from mlxk2.runner.request import GenerationRequest

MAX_WAITING_EVENTS = 4096  # For each sequence. A client that is so far behind has stopped reading.


class Generation:
    """The sequences of one request: an asynchronous iterator over lists of events, each with its sequence's number.

    Iterating raises the error of a sequence that fails. `name` is the name of the model, and `count` the number of
    sequences. If there is only one sequence, `timings` are its timings after it has finished.
    """

    def __init__(self, number: int, name: str, requests: Sequence[GenerationRequest]) -> None:
        self.id = number
        self.name = name
        self.count = len(requests)
        # The first sequence of each prompt, because a prompt of several sequences counts once.
        prompts = [id(request.prompt) for request in requests]
        self._firsts = {prompts.index(prompt) for prompt in prompts}
        self._usages: dict[int, Usage] = {}
        self.timings: Timings | None = None
        self._unfinished = self.count
        self._events: list[tuple[int, Event]] = []
        self._arrived = asyncio.Event()
        self._error: Exception | None = None

    def put(self, number: int, event: Event) -> None:
        """Add the next event of a sequence."""
        if isinstance(event, Failed):
            self.fail(event.error)
        elif len(self._events) < MAX_WAITING_EVENTS * self.count:
            self._events.append((number, event))
            self._arrived.set()
        else:
            self.fail(OperationError("The response was cancelled because the client does not read it."))
        if isinstance(event, Finished):
            self._usages[number] = event.usage
            self.timings = event.timings if self.count == 1 else None
            self._unfinished -= 1

    def fail(self, error: Exception) -> None:
        """End with an error; iterating raises it after the earlier events."""
        self._error = self._error or error
        self._arrived.set()

    @property
    def has_ended(self) -> bool:
        """Whether all sequences have finished, or an error has ended them."""
        return self._error is not None or not self._unfinished

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> list[tuple[int, Event]]:
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
    def usage(self) -> Usage:
        """The tokens of all sequences that have finished."""
        firsts = [usage for number, usage in self._usages.items() if number in self._firsts]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in firsts),
            cached_tokens=sum(usage.cached_tokens for usage in firsts),
            completion_tokens=sum(usage.completion_tokens for usage in self._usages.values()),
        )
