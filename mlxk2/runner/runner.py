"""MLXRunner: the only code that generates, for one request or for many at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable

from mlxk2.errors import ModelError
from mlxk2.runner.events import Event, Failed, Finished
from mlxk2.runner.isolation import Isolation
from mlxk2.runner.output.text import TextStream
from mlxk2.runner.prompt_cache import PromptCache
from mlxk2.runner.request import GenerationRequest, check_tokens, token_budget
from mlxk2.runner.sequences import FAULTS, NO_TOKEN, Backend, Batch, Reading, Sequence, Step, free_frames

# mlx-lm's default number of sequences to decode together.
MAX_SEQUENCES = 32

# MLX raises these if memory is short, and for other reasons too. Then all that can be computed again is freed.
_MEMORY_FAULTS = (MemoryError, RuntimeError)

_FAILED = "Generation failed"
_NO_NUMBERS = (
    "The model computes no numbers (NaN): its weights are damaged, or do not suit this machine. "
    "Pull the model again with --force, or choose another one."
)
_UNREADABLE = "The model's tokens can't be decoded"

# The number of a sequence, and what came out of it.
Output = tuple[int, Event]


class MLXRunner:
    """Generates completions with a loaded model, in the thread that loaded it; it has no threads of its own.

    Requests wait while `max_sequences` completions are generated. What was computed is retained in at most
    `prompt_cache_bytes`, for prompts with the same beginning. `clock` returns seconds, for the timings.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        prompt_cache_bytes: int = 0,
        max_sequences: int = MAX_SEQUENCES,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._backend = backend
        self._max_sequences = max_sequences
        self._clock = clock
        self._prompts = PromptCache(prompt_cache_bytes, backend.max_cached_arrays)
        self._batch: Batch | None = None
        # All sequences that have not ended, by id, and those of them that are in the batch.
        self._sequences: dict[int, Sequence] = {}
        self._running: dict[int, Sequence] = {}
        self._isolation: Isolation | None = None
        self._count = 0

    def submit(self, request: GenerationRequest) -> int:
        """Queue a request for the next step; return the id of its sequence.

        Raise ValidationError or ContextLengthError for a wrong request.
        """
        check_tokens(request, self._backend.vocabulary_size)
        max_tokens = token_budget(request, self._backend.context_length)
        text = TextStream(
            self._backend.vocabulary,
            request.stop,
            thinking=request.thinking,
            plain=request.plain,
            continues=request.continues,
        )
        self._count += 1
        sequence = Sequence(self._count, request, text, max_tokens, self._clock())
        if self._isolation is not None:
            self._isolation.add(sequence)
        else:
            try:
                self._insert(sequence)
            except FAULTS as fault:
                raise _error(fault) from fault
        self._sequences[sequence.id] = sequence
        return sequence.id

    def step(self) -> list[Output]:
        """Do the next piece of work for all sequences; return the events, those of a sequence in their order.

        A fault ends the sequence that causes it; to find that one, each sequence is generated alone for one token.
        """
        outputs = self._continue_isolation() if self._isolation is not None and not self._running else []
        if self._batch is None or not self._running:
            return outputs
        try:
            steps = self._batch.next()
        except FAULTS as fault:
            return [*outputs, *self._begin_isolation(fault)]
        now = self._clock()
        has_token = False
        for step in steps:
            if isinstance(step, Reading):
                outputs += [(step.sequence_id, event) for event in self._sequences[step.sequence_id].read(step)]
            else:
                has_token = True
                outputs += self._advance(step, now)
        if self._isolation is not None and has_token:
            # The sequence that was tested alone has got a token: it waits until all have been tested.
            for sequence in list(self._running.values()):
                self._withdraw(sequence)
                self._isolation.clear(sequence)
        return outputs

    def cancel(self, sequence_id: int) -> list[Event]:
        """End a sequence now; return its last events, or nothing if it has ended already."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return []
        self._withdraw(sequence)
        try:
            return sequence.finish("interrupted", self._clock())
        except FAULTS as fault:
            return [Failed(_error(fault, _UNREADABLE))]

    def stream(
        self, request: GenerationRequest, is_interrupted: Callable[[], bool] | None = None
    ) -> Generator[Event, None, None]:
        """Yield the events of one completion, the last one `Finished`; raise the error of one that failed.

        `is_interrupted` is called before each step. Closing the iterator cancels the request. Use this only on a runner
        without other sequences, because it drops their events.
        """
        sequence_id = self.submit(request)
        try:
            while sequence_id in self._sequences:
                if is_interrupted is not None and is_interrupted():
                    events = self.cancel(sequence_id)
                else:
                    events = [event for owner, event in self.step() if owner == sequence_id]
                for event in events:
                    if isinstance(event, Failed):
                        raise event.error
                    yield event
        finally:
            self.cancel(sequence_id)

    def close(self) -> None:
        """Drop all sequences, and give back the memory that the batch has reserved."""
        self._sequences.clear()
        self._isolation = None
        self._drop_batch()
        self._prompts.clear()

    def _insert(self, sequence: Sequence) -> None:
        """Add a sequence to the batch."""
        if self._batch is None:
            self._batch = self._backend.batch(self._max_sequences, self._prompts)
        self._batch.insert(sequence.id, sequence.request, sequence.max_tokens, sequence.completion)
        self._running[sequence.id] = sequence

    def _begin_isolation(self, fault: Exception) -> list[Output]:
        """Drop the batch; fail its sequence if there is only one, else begin to test each alone."""
        sequences = self._drop_faulty_batch(fault)
        if len(sequences) > 1:
            self._isolation = Isolation(sequences, fault)
            return []
        return [self._fail(sequence, _error(fault)) for sequence in sequences]

    def _continue_isolation(self) -> list[Output]:
        """Begin to test the next sequence; if none is left, let all continue together."""
        isolation = self._isolation
        assert isolation is not None
        sequence = isolation.next()
        outputs: list[Output] = []
        if sequence is not None:
            inserted: Iterable[Sequence] = [sequence]
        else:
            self._isolation = None
            newest = isolation.pop_unexplained()
            if newest is not None:
                outputs.append(self._fail(newest, _error(isolation.fault)))
            inserted = isolation.waiting
        for sequence in inserted:
            try:
                self._insert(sequence)
            except FAULTS as fault:
                outputs.append(self._fail(sequence, _error(fault)))
        return outputs

    def _advance(self, step: Step, now: float) -> list[Output]:
        """Give a step's token to its sequence; a token that can't be turned into text ends that sequence alone."""
        sequence = self._sequences[step.sequence_id]
        if step.finish_reason is not None:
            # The batch has dropped it.
            self._running.pop(sequence.id, None)
        if step.token == NO_TOKEN:
            return [self._fail(sequence, ModelError(_NO_NUMBERS))]
        try:
            events = sequence.advance(step, now)
        except FAULTS as fault:
            return [self._fail(sequence, _error(fault, _UNREADABLE))]
        if events and isinstance(events[-1], Finished):
            self._withdraw(sequence)
            del self._sequences[sequence.id]
        return [(sequence.id, event) for event in events]

    def _fail(self, sequence: Sequence, error: ModelError) -> Output:
        """End a sequence with an error; return its last event."""
        self._withdraw(sequence)
        del self._sequences[sequence.id]
        return sequence.id, Failed(error)

    def _withdraw(self, sequence: Sequence) -> None:
        """Take a sequence out of the batch or of the isolation; if that fails, the others go on in a new batch."""
        if self._isolation is not None:
            self._isolation.discard(sequence)
        if self._running.pop(sequence.id, None) is None or self._batch is None:
            return
        try:
            self._batch.remove(sequence.id)
        except FAULTS as fault:
            logging.getLogger(__name__).warning("A sequence could not be taken out of the batch: %s", fault)
            others = self._drop_faulty_batch(fault)
            self._isolation = self._isolation or Isolation((), fault)
            for other in others:
                self._isolation.add(other)

    def _drop_faulty_batch(self, fault: Exception) -> list[Sequence]:
        """Drop a batch whose state is unknown after a fault; return its sequences."""
        sequences = list(self._running.values())
        free_frames(fault)
        if isinstance(fault, _MEMORY_FAULTS):
            self._prompts.clear()
        self._drop_batch()
        return sequences

    def _drop_batch(self) -> None:
        self._running.clear()
        batch, self._batch = self._batch, None
        if batch is not None:
            batch.close()


def _error(fault: Exception, what: str = _FAILED) -> ModelError:
    return ModelError(f"{what}: {str(fault) or type(fault).__name__}")
