"""The thread that owns MLX: it loads models, and steps the runner while sequences are being generated."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from mlxk2.errors import ModelError
from mlxk2.runner.events import Event, Failed, Finished
from mlxk2.runner.request import GenerationRequest
from mlxk2.runner.runner import MLXRunner
from mlxk2.runner.sequences import Backend, free_frames
from mlxk2.server.generation import Generation

T = TypeVar("T")
# Load a model. Call the function that is passed in before the memory of the previous model is needed.
Loader = Callable[[Callable[[], None]], Backend]


def run_job(job: Callable[..., T], *args: object) -> T:
    """Run a job for a future; raise each of its faults as an Exception, which a future can carry."""
    try:
        return job(*args)
    except BaseException as fault:  # noqa: BLE001 - raised again in a form that a future can carry
        # The caller may keep the fault for long; the model that could not be loaded must not stay in memory with it.
        free_frames(fault)
        raise _as_exception(fault) from fault.__cause__


def _as_exception(fault: BaseException) -> Exception:
    # A panic of a Rust library is not an Exception and would end the event loop; a future can't carry StopIteration.
    if isinstance(fault, Exception) and not isinstance(fault, StopIteration):
        return fault
    return RuntimeError(f"{type(fault).__name__}: {fault}")


class Worker:
    """Generate in a thread of its own; the public methods are for the thread of the event loop.

    Jobs wait in the queue of the thread. Each step is a job that queues the next step, so other jobs run between two
    steps. At most `max_sequences` are generated at the same time. The thread calls `rest` when no sequence is left.
    """

    def __init__(self, max_sequences: int, rest: Callable[[], None] = lambda: None) -> None:
        self.model: Backend | None = None
        self._max_sequences = max_sequences
        self._rest = rest
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlx")
        self._runner: MLXRunner | None = None
        # The request of each sequence of the runner, and the sequence's number in it.
        self._generations: dict[int, tuple[Generation, int]] = {}
        self._step_is_queued = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def load(self, load: Loader) -> None:
        """Load a model into `model`; raise the error of `load`, after which the previous model, or none, is left."""
        await asyncio.wrap_future(self._thread.submit(run_job, self._load, load))

    def submit(self, generation: Generation, requests: Iterable[GenerationRequest]) -> None:
        """Begin to generate with the model in memory; a fault of the requests fails the generation."""
        self._loop = asyncio.get_running_loop()
        self._thread.submit(self._submit, generation, requests)

    def cancel(self, generation: Generation) -> None:
        """Stop the sequences of a generation, without waiting for that."""
        self._thread.submit(self._cancel, generation)

    def stop(self) -> None:
        """Let the thread end after its current job."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _load(self, load: Loader) -> None:
        model = load(self._unload)
        self._unload()
        self._runner = MLXRunner(model, prompt_cache_bytes=model.prompt_cache_bytes, max_sequences=self._max_sequences)
        self.model = model

    def _unload(self) -> None:
        runner, self._runner, self.model = self._runner, None, None
        if runner is not None:
            runner.close()

    def _submit(self, generation: Generation, requests: Iterable[GenerationRequest]) -> None:
        try:
            # If the generation is closed, its cancelling may be done already.
            for number, request in enumerate(() if generation.is_closed else requests):
                self._generations[self._running().submit(request)] = (generation, number)
        except BaseException as fault:  # noqa: BLE001 - every fault must reach the client, which waits for a response
            free_frames(fault)
            self._call_on_loop(generation.fail, _as_exception(fault))
        self._queue_step()

    def _cancel(self, generation: Generation) -> None:
        sequence_ids = [number for number, (owner, _) in self._generations.items() if owner is generation]
        try:
            for sequence_id in sequence_ids:
                del self._generations[sequence_id]
                self._running().cancel(sequence_id)
        except BaseException as fault:  # noqa: BLE001 - as in a step
            self._fail(fault)

    def _queue_step(self) -> None:
        if self._generations and not self._step_is_queued:
            self._step_is_queued = True
            self._thread.submit(self._step)

    def _step(self) -> None:
        """Generate the next tokens, pass them to the event loop all at once, and queue the next step."""
        self._step_is_queued = False
        try:
            events = []
            for sequence_id, event in self._running().step():
                if sequence_id in self._generations:
                    events.append((*self._generations[sequence_id], event))
                    if isinstance(event, Finished | Failed):
                        del self._generations[sequence_id]
            if events:
                self._call_on_loop(_put, events)
        except BaseException as fault:  # noqa: BLE001 - every fault must reach the clients, which wait for responses
            self._fail(fault)
        if self._generations:
            self._queue_step()
        else:
            self._rest()

    def _running(self) -> MLXRunner:
        if self._runner is None:
            raise ModelError("The model is no longer in memory.")
        return self._runner

    def _fail(self, fault: BaseException) -> None:
        """End all sequences: after this fault their state is unknown."""
        free_frames(fault)
        logging.error("Generation failed", exc_info=fault)
        error = ModelError(f"Generation failed: {fault}")
        generations = {generation for generation, _ in self._generations.values()}
        self._generations.clear()
        for generation in generations:
            self._call_on_loop(generation.fail, error)
        if self._runner is not None:
            self._runner.close()

    def _call_on_loop(self, function: Callable[..., None], *args: object) -> None:
        if self._loop is not None:
            # A step may take longer than the loop exists; no client waits for the response then.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function, *args)


def _put(events: Iterable[tuple[Generation, int, Event]]) -> None:
    for generation, number, event in events:
        generation.put(number, event)
