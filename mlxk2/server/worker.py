"""The thread that owns MLX: it loads models, and calls the runner's steps while sequences are being generated."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from mlxk2.errors import MlxkError, ModelError
from mlxk2.formatting import reason_of
from mlxk2.runner.events import Failed, Finished
from mlxk2.runner.runner import MLXRunner
from mlxk2.runner.sequences import Backend, free_frames
from mlxk2.server.messages import (
    Cancel,
    Command,
    Load,
    Loaded,
    LoadFailed,
    ModelKey,
    Report,
    Rest,
    SequenceEvent,
    Submit,
)

# Loads a model. It calls the given function, which unloads the previous model, when it needs that memory.
LoadModel = Callable[[ModelKey, Callable[[], None]], Backend]

_ENDS = (Finished, Failed)


class Worker:
    """Generates in its own thread; call the public methods in the thread of the event loop.

    Commands wait in the thread's queue. Each step is a job that queues the next step, so commands are executed between
    two steps. At most `max_sequences` are generated at the same time. `rest` returns freed memory to the system.
    """

    def __init__(self, load: LoadModel, max_sequences: int, rest: Callable[[], None] = lambda: None) -> None:
        self._load_model = load
        self._max_sequences = max_sequences
        self._rest = rest
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlx")
        self._key: ModelKey | None = None
        self._runner: MLXRunner | None = None
        # For each sequence of the runner: the id of its requests, and its number among them.
        self._sequences: dict[int, tuple[int, int]] = {}
        self._step_is_queued = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._receive: Callable[[Sequence[Report]], None] | None = None

    def connect(self, receive: Callable[[Sequence[Report]], None]) -> None:
        """From now on, call a function on the event loop with the reports; the reports of a step come together."""
        self._receive = receive

    def send(self, command: Command) -> None:
        """Let the thread execute a command after its current job."""
        self._loop = asyncio.get_running_loop()
        self._thread.submit(self._carry_out, command).add_done_callback(_log_fault)

    def stop(self) -> None:
        """Let the thread end after its current job."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _carry_out(self, command: Command) -> None:
        match command:
            case Load(key):
                self._load(key)
            case Submit():
                self._submit(command)
            case Cancel(id=request_id):
                self._cancel(request_id)
            case Rest():
                if not self._sequences:
                    self._rest()

    def _load(self, key: ModelKey) -> None:
        try:
            model = self._load_model(key, self._unload)
            self._unload()
            self._runner = MLXRunner(
                model, prompt_cache_bytes=model.prompt_cache_bytes, max_sequences=self._max_sequences
            )
            self._key = key
        except BaseException as error:  # noqa: BLE001 - every error must reach the clients, which wait for the model
            # The error can live long, and its traceback would keep the model that could not be loaded in memory.
            free_frames(error)
            self._report(LoadFailed(key, as_error(error, f"{key.name} can't be loaded"), self._key is None))
        else:
            self._report(Loaded(key, model.vocabulary_size))

    def _unload(self) -> None:
        runner, self._runner, self._key = self._runner, None, None
        if runner is not None:
            runner.close()

    def _submit(self, command: Submit) -> None:
        for number, request in enumerate(command.requests):
            try:
                if self._runner is None or self._key != command.key:
                    raise ModelError("The model is no longer in memory.")
                self._sequences[self._runner.submit(request)] = (command.id, number)
            except BaseException as error:  # noqa: BLE001 - every error must reach the client, which waits for a response
                free_frames(error)
                self._report(SequenceEvent(command.id, number, Failed(as_error(error, "Generation failed"))))
        self._queue_step()

    def _cancel(self, request_id: int) -> None:
        sequences = [sequence for sequence, (owner, _) in self._sequences.items() if owner == request_id]
        try:
            for sequence in sequences:
                del self._sequences[sequence]
                if self._runner is not None:
                    self._runner.cancel(sequence)
        except BaseException as error:  # noqa: BLE001 - as in a step
            self._fail(error)

    def _queue_step(self) -> None:
        if self._sequences and not self._step_is_queued:
            self._step_is_queued = True
            with suppress(RuntimeError):  # after `stop` the thread takes no more jobs
                self._thread.submit(self._step).add_done_callback(_log_fault)

    def _step(self) -> None:
        """Generate the next tokens, report all events at once, and queue the next step."""
        self._step_is_queued = False
        try:
            reports = []
            for sequence, event in self._runner.step() if self._runner is not None else ():
                if sequence in self._sequences:
                    reports.append(SequenceEvent(*self._sequences[sequence], event))
                    if isinstance(event, _ENDS):
                        del self._sequences[sequence]
            if reports:
                self._report(*reports)
        except BaseException as error:  # noqa: BLE001 - every error must reach the clients, which wait for responses
            self._fail(error)
        self._queue_step()

    def _fail(self, error: BaseException) -> None:
        """End all sequences with an error, because their state is unknown after this exception."""
        free_frames(error)
        logging.error("Generation failed", exc_info=error)
        event = Failed(ModelError(f"Generation failed: {reason_of(error)}"))
        owners = list(self._sequences.values())
        self._sequences.clear()
        self._report(*(SequenceEvent(*owner, event) for owner in owners))
        if self._runner is not None:
            self._runner.close()

    def _report(self, *reports: Report) -> None:
        if self._loop is not None and self._receive is not None:
            # The event loop can be closed before a long step ends; then no client waits for these reports.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._receive, reports)


def _log_fault(job: Future[None]) -> None:
    """Log what a job has raised, which would be lost in its future."""
    if not job.cancelled() and (error := job.exception()) is not None:
        logging.error("The worker made a mistake", exc_info=error)


def as_error(error: BaseException, what: str) -> MlxkError:
    """Return the MlxkError for an exception; log exceptions of other types."""
    if isinstance(error, MlxkError):
        return error
    logging.error(what, exc_info=error)
    # A panic of a Rust library is not an Exception, and its message can be unclear without its type.
    name = "" if isinstance(error, Exception) else f"{type(error).__name__}: "
    return ModelError(f"{what}: {name}{reason_of(error)}")
