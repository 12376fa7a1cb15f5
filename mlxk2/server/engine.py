"""The engine: which model is in memory, whose turn it is, and the answers on their way."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from mlxk2.errors import (
    MlxkError,
    ModelError,
    OperationError,
    ServerBusyError,
    ServerStoppingError,
    ValidationError,
)
from mlxk2.runner.request import GenerationRequest
from mlxk2.runner.sequences import Backend
from mlxk2.server.generation import Reply
from mlxk2.server.scheduler import Target, Ticket, Turns
from mlxk2.server.worker import Plan, Worker

__all__ = ["Engine", "Limits", "Load", "Target"]


# Loads a target; calls the function it is given before it needs the memory of the model before.
Load = Callable[[Target, Callable[[], None]], Backend]


@dataclass(frozen=True)
class Limits:
    """How many answers are generated at the same time, and how many requests may wait for that."""

    max_concurrent: int
    max_queue: int


class Engine:
    """Admits requests, each client's in turn, and swaps models when the requests of the one before are through.

    A model swap serves every request that is waiting for that model, before any other.

    All its methods are for the thread of the event loop.
    """

    def __init__(self, load: Load, worker: Worker, limits: Limits) -> None:
        self.limits = limits
        self.target: Target | None = None
        self.loading: Target | None = None
        self._load = load
        self._worker = worker
        self._waiting = Turns()
        self._tickets: dict[Reply, Ticket] = {}
        self._active = 0
        self._swap_task: asyncio.Task[None] | None = None
        self._is_stopping = False

    @property
    def active(self) -> int:
        """How many answers are being generated."""
        return self._active

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return self._waiting.requests

    async def preload(self, target: Target) -> None:
        """Load a model before anyone asks for it; raise what makes that fail."""
        loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end(error: MlxkError | None = None) -> None:
            if loaded.done():
                return
            if error is None:
                loaded.set_result(None)
            else:
                loaded.set_exception(error)

        self._enter(Ticket(target, 0, lambda _: end(), end))
        await loaded

    async def generate(self, target: Target, slots: int, plan: Plan, client: Hashable = None) -> Reply:
        """Queue a client's request, and return its reply at once; what `plan` makes of it is generated in its turn.

        Raises ServerBusyError when the queue is full, ServerStoppingError at the end. The reply raises what loading the
        model, `plan` and `MLXRunner.submit` do. It must be closed.
        """
        reply = Reply(target.name, slots, self._release)

        def requests(model: Backend) -> Sequence[GenerationRequest]:
            return [replace(request, client=client) for request in plan(model)]

        ticket = Ticket(target, slots, lambda _: self._worker.generate(reply, requests), reply.fail, client)
        self._tickets[reply] = ticket
        try:
            self._enter(ticket)
        except MlxkError:
            del self._tickets[reply]
            raise
        return reply

    @property
    def model(self) -> Backend | None:
        """The model in memory."""
        return self._worker.model

    def stop(self) -> None:
        """Take no more work and end all that is under way with an error."""
        self._is_stopping = True
        error = ServerStoppingError()
        while self._waiting:
            self._waiting.pop().refuse(error)
        for reply in list(self._tickets):
            reply.fail(error)

    def close(self) -> None:
        """Let the threads end after what they are doing now."""
        self._worker.stop()

    def _enter(self, ticket: Ticket) -> None:
        if self._is_stopping:
            raise ServerStoppingError
        self._waiting.add(ticket)
        self._admit()
        if not ticket.is_started and ticket.slots and self._is_full():
            refused = self._waiting.last_of_most(ticket.client)
            self._waiting.remove(refused)
            busy = ServerBusyError(self.queued)
            if refused is ticket:
                raise busy
            refused.refuse(busy)

    def _is_full(self) -> bool:
        # The one whose model is being loaded is served next, however long the queue may be.
        return self.queued > self.limits.max_queue + (self._swap_task is not None)

    def _admit(self) -> None:
        """Start the requests at the head of the queue, up to the first that has to wait."""
        while self._waiting and self._swap_task is None:
            ticket = self._waiting.first
            if self._worker.model is None or ticket.target != self.target:
                if not self._active:
                    self._swap_task = asyncio.get_running_loop().create_task(self._swap(ticket.target))
                return
            if self._active and self._active + ticket.slots > self.limits.max_concurrent:
                return
            self._waiting.pop()
            self._active += ticket.slots
            ticket.is_started = True
            ticket.start(self._worker.model)

    async def _swap(self, target: Target) -> None:
        self.loading = target
        try:
            await self._worker.load(lambda unload: self._load(target, unload))
            self.target = target
            # Requests that came for this model during the swap go first, which saves another swap.
            self._waiting.prefer(target)
        except Exception as fault:  # noqa: BLE001 - handed to all who wait for this model
            self._refuse_all(target, _load_error(target, fault))
        finally:
            if self._worker.model is None:
                self.target = None
            self.loading = self._swap_task = None
        self._admit()

    def _refuse_all(self, target: Target, error: MlxkError) -> None:
        for ticket in [ticket for ticket in self._waiting if ticket.target == target]:
            self._waiting.remove(ticket)
            ticket.refuse(error)

    def _release(self, reply: Reply) -> None:
        ticket = self._tickets.pop(reply)
        if ticket.is_started:
            self._worker.cancel(reply)
            self._active -= ticket.slots
        elif ticket in self._waiting:
            self._waiting.remove(ticket)
        self._admit()


def _load_error(target: Target, fault: Exception) -> MlxkError:
    if isinstance(fault, ValidationError) and target.adapter is not None:
        # The adapter is not the client's, and neither is its path.
        logging.error(fault.message)
        return OperationError(fault.message.replace(target.adapter, os.path.basename(target.adapter)))
    if isinstance(fault, MlxkError):
        return fault
    logging.error("Loading %s failed", target.name, exc_info=fault)
    return ModelError(f"{target.name} can't be loaded: {fault}")
