"""The one thread that owns MLX: it loads models and steps the runner as long as there is something to generate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mlxk2.errors import ModelError
from mlxk2.runner.params import GenerationRequest
from mlxk2.runner.runner import Backend, Chunk, MLXRunner, Session
from mlxk2.server.reply import Reply

T = TypeVar("T")
MakeRunner = Callable[[Backend], MLXRunner]


class Worker:
    """Generates in a thread of its own; the public methods are for the thread of the event loop.

    What is to be done queues up, and so does each next step: whatever comes in is done between two steps.
    """

    def __init__(self, make_runner: MakeRunner) -> None:
        self._make_runner = make_runner
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="mlx")
        self._runner: MLXRunner | None = None
        self._replies: dict[Session, tuple[Reply, int]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def load(self, load: Callable[[Callable[[], None]], Backend]) -> Backend:
        """Load a model with this function, which is given what unloads the one before; raise what it raises."""
        return await self._run(self._load, load)

    async def submit(self, reply: Reply, requests: Sequence[GenerationRequest]) -> None:
        """Begin to generate the answers of a reply; raise ValidationError or ContextLengthError for what can't be."""
        self._loop = asyncio.get_running_loop()
        await self._run(self._submit, reply, requests)

    def cancel(self, reply: Reply) -> None:
        """Stop generating for a reply; nobody waits for it."""
        self._executor.submit(self._cancel, reply)

    def stop(self) -> None:
        """Let the thread end after what it is doing now."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def join(self, timeout: float) -> bool:
        """Wait that many seconds for the thread; whether it has ended."""
        threads = list(self._executor._threads)
        for thread in threads:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in threads)

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.wrap_future(self._executor.submit(function, *args))

    def _load(self, load: Callable[[Callable[[], None]], Backend]) -> Backend:
        model = load(self._unload)
        self._unload()
        self._runner = self._make_runner(model)
        return model

    def _unload(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    @property
    def is_loaded(self) -> bool:
        """Whether there is a model in memory."""
        return self._runner is not None

    def _submit(self, reply: Reply, requests: Sequence[GenerationRequest]) -> None:
        if self._runner is None:
            raise ModelError("The model is gone.")
        idle = not self._replies
        for number, request in enumerate(requests):
            session = self._runner.submit(request)
            reply.sessions.append(session)
            self._replies[session] = (reply, number)
        if idle:
            self._executor.submit(self._step)

    def _cancel(self, reply: Reply) -> None:
        for session in reply.sessions:
            if self._replies.pop(session, None) and self._runner is not None:
                self._runner.cancel(session)

    def _step(self) -> None:
        """Generate the next tokens, hand them to the event loop all at once, and queue the next step."""
        if self._runner is None or not self._replies:
            return
        entries = [(self._replies[session], chunk) for session, chunk in self._next_chunks(self._runner)]
        for (reply, number), chunk in entries:
            if chunk.finish_reason is not None:
                del self._replies[reply.sessions[number]]
        if entries and self._loop is not None:
            self._loop.call_soon_threadsafe(_deliver, entries)
        if self._replies:
            self._executor.submit(self._step)

    def _next_chunks(self, runner: MLXRunner) -> list[tuple[Session, Chunk]]:
        try:
            return runner.step()
        except Exception as fault:  # noqa: BLE001 - handed to every request: the next one must find a thread that works
            error = ModelError(f"Generation failed: {fault}")
            runner.close()
            for session in self._replies:
                session.row, session.error = None, error
            return [(session, Chunk("", "answer", session.tokens, "error")) for session in self._replies]


def _deliver(entries: Sequence[tuple[tuple[Reply, int], Chunk]]) -> None:
    for (reply, number), chunk in entries:
        reply.put(number, chunk)
