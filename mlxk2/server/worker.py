"""The one thread that owns MLX: it loads models and steps the runner as long as there is something to generate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from mlxk2.errors import ModelError
from mlxk2.runner.request import GenerationRequest
from mlxk2.runner.runner import Chunk, MLXRunner, Outcome, Session
from mlxk2.runner.sequences import Backend, free_frames
from mlxk2.server.generation import Reply

T = TypeVar("T")
MakeRunner = Callable[[Backend], MLXRunner]
# Calls the function it is given before it needs the memory of the model before.
Loader = Callable[[Callable[[], None]], Backend]
# Turns what a client asked into requests, for a model that is in memory.
Plan = Callable[[Any], Sequence[GenerationRequest]]


class Thread:
    """A thread that does one job after another, whatever comes of them."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, job: Callable[..., T], *args: object) -> T:
        """Do a job when those before it are done; return what it returns, raise what it raises."""
        return await asyncio.wrap_future(self._executor.submit(outcome, job, *args))

    def queue(self, job: Callable[..., None], *args: object) -> None:
        """Do a job when those before it are done, without waiting for it."""
        self._executor.submit(job, *args)

    def stop(self) -> None:
        """End after the job that is being done now."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def outcome(job: Callable[..., T], *args: object) -> T:
    """Do a job; what it raises is an Exception that a future can carry."""
    try:
        return job(*args)
    except BaseException as fault:  # noqa: BLE001 - it goes on as the exception it can be
        # The caller may keep it for long, and a model that could not be loaded must not stay in memory with it.
        free_frames(fault)
        raise _as_exception(fault) from fault.__cause__


def _as_exception(fault: BaseException) -> Exception:
    # The panics of Rust libraries are no Exceptions, and would end the event loop; no future may carry StopIteration.
    if isinstance(fault, Exception) and not isinstance(fault, StopIteration):
        return fault
    return RuntimeError(f"{type(fault).__name__}: {fault}")


class Worker:
    """Generates in a thread of its own; the public methods are for the thread of the event loop.

    What is to be done queues up, and so does each next step: whatever comes in is done between two steps. `rest` is
    called in that thread whenever nothing is left to generate.
    """

    def __init__(self, make_runner: MakeRunner, rest: Callable[[], None] = lambda: None) -> None:
        self.model: Backend | None = None
        self._make_runner = make_runner
        self._rest = rest
        self._thread = Thread("mlx")
        self._runner: MLXRunner | None = None
        self._replies: dict[Session, tuple[Reply, int]] = {}
        self._step_is_queued = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def load(self, load: Loader) -> None:
        """Load a model into `model`; raise what `load` raises. Then the one before is there still, or none."""
        await self._thread.run(self._load, load)

    def generate(self, reply: Reply, plan: Plan) -> None:
        """Begin to generate what `plan` makes of the model in memory; whatever is wrong with it fails the reply."""
        self._loop = asyncio.get_running_loop()
        self._thread.queue(self._submit, reply, plan)

    def cancel(self, reply: Reply) -> None:
        """Stop generating for a reply, without waiting for that."""
        self._thread.queue(self._cancel, reply)

    def stop(self) -> None:
        """Let the thread end after what it is doing now."""
        self._thread.stop()

    def _load(self, load: Loader) -> None:
        model = load(self._unload)
        self._unload()
        self._runner, self.model = self._make_runner(model), model

    def _unload(self) -> None:
        runner, self._runner, self.model = self._runner, None, None
        if runner is not None:
            runner.close()

    def _submit(self, reply: Reply, plan: Plan) -> None:
        with self._hand_faults_to(reply):
            # The cancelling of a closed reply may have come and gone.
            for number, request in enumerate(() if reply.is_closed else plan(self.model)):
                session = self._running().submit(request)
                reply.sessions.append(session)
                self._replies[session] = (reply, number)
        self._queue_step()

    @contextmanager
    def _hand_faults_to(self, reply: Reply) -> Iterator[None]:
        try:
            yield
        except BaseException as fault:  # noqa: BLE001 - no client may wait for ever
            free_frames(fault)
            self._on_loop(reply.fail, _as_exception(fault))

    def _cancel(self, reply: Reply) -> None:
        sessions = [session for session in reply.sessions if self._replies.pop(session, None)]
        try:
            for session in sessions:
                self._running().cancel(session)
        except BaseException as fault:  # noqa: BLE001 - as in a step
            self._fail(fault)

    def _queue_step(self) -> None:
        if self._replies and not self._step_is_queued:
            self._step_is_queued = True
            self._thread.queue(self._step)

    def _step(self) -> None:
        """Generate the next tokens, hand them to the event loop all at once, and queue the next step."""
        self._step_is_queued = False
        try:
            self._hand_over(self._running().step())
        except BaseException as fault:  # noqa: BLE001 - told to every request: nobody may wait for ever
            self._fail(fault)
        if self._replies:
            self._queue_step()
        else:
            self._rest()

    def _running(self) -> MLXRunner:
        if self._runner is None:
            raise ModelError("The model is gone.")
        return self._runner

    def _hand_over(self, outcomes: Iterable[Outcome]) -> None:
        parts = []
        for session, chunk in outcomes:
            if session in self._replies:
                parts.append((*self._replies[session], chunk))
                if chunk.finish_reason is not None:
                    del self._replies[session]
        if parts:
            self._on_loop(_put, parts)

    def _fail(self, fault: BaseException) -> None:
        """End all that is being generated: after this fault its state is unknown."""
        free_frames(fault)
        logging.error("Generation failed", exc_info=fault)
        error = ModelError(f"Generation failed: {fault}")
        replies = {reply for reply, _ in self._replies.values()}
        self._replies.clear()
        self._on_loop(_fail, replies, error)
        if self._runner is not None:
            self._runner.close()

    def _on_loop(self, function: Callable[..., None], *args: object) -> None:
        if self._loop is not None:
            # A step may outlast the loop, and then nobody waits for anything.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function, *args)


def _put(parts: Iterable[tuple[Reply, int, Chunk]]) -> None:
    for reply, number, chunk in parts:
        reply.put(number, chunk)


def _fail(replies: Iterable[Reply], error: ModelError) -> None:
    for reply in replies:
        reply.fail(error)
