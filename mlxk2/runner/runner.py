"""MLXRunner: generate completions, for one request or for many at once. No other code generates."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable

from mlxk2.errors import ModelError
from mlxk2.formatting import reason_of
from mlxk2.runner.events import Event, Failed, Finished
from mlxk2.runner.isolation import Isolation
from mlxk2.runner.output.text import TextStream
from mlxk2.runner.prompt_cache import PromptCache
from mlxk2.runner.request import GenerationRequest, check_tokens, token_budget
from mlxk2.runner.sequences import MLX_ERRORS, NO_TOKEN, Backend, Batch, Reading, Sequence, Step, free_frames

MAX_SEQUENCES = 32  # mlx-lm's default number of sequences that are decoded together.

# MLX raises these when memory is short, and for other reasons. After them, the prompt cache is cleared.
_MEMORY_ERRORS = (MemoryError, RuntimeError)

_FAILED = "Generation failed"
_NO_NUMBERS = (
    "The model computes NaN instead of numbers: its weights are damaged, or do not suit this machine. "
    "Pull the model again with --force, or choose another one."
)
_UNREADABLE = "The model's tokens can't be decoded"

Output = tuple[int, Event]  # The id of a sequence, and one of its events.


class MLXRunner:
    """Generates completions with a loaded model. All methods must be called in the thread that loaded the model.

    At most `max_sequences` completions are generated at the same time; further requests wait. The prompt cache keeps
    computed states in at most `prompt_cache_bytes`, for prompts with the same beginning. `clock` returns seconds.
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
        # By id: all sequences that have not ended, and those of them that are in the batch.
        self._sequences: dict[int, Sequence] = {}
        self._running: dict[int, Sequence] = {}
        self._isolation: Isolation | None = None
        self._count = 0

    def submit(self, request: GenerationRequest) -> int:
        """Queue a request for the next step and return the id of its sequence.

        Raise ValidationError or ContextLengthError for an invalid request.
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
            except MLX_ERRORS as error:
                raise _model_error(error) from error
        self._sequences[sequence.id] = sequence
        return sequence.id

    def step(self) -> list[Output]:
        """Do the next part of the work for all sequences and return their events; a sequence's events are in order.

        An error ends the sequence that causes it. To find that sequence, each one is generated alone for one token.
        """
        outputs = self._continue_isolation() if self._isolation is not None and not self._running else []
        if self._batch is None or not self._running:
            return outputs
        try:
            steps = self._batch.next()
        except MLX_ERRORS as error:
            return [*outputs, *self._begin_isolation(error)]
        now = self._clock()
        has_token = False
        for step in steps:
            if isinstance(step, Reading):
                outputs += [(step.sequence_id, event) for event in self._sequences[step.sequence_id].read(step)]
            else:
                has_token = True
                outputs += self._advance(step, now)
        if self._isolation is not None and has_token:
            # The sequence that was tested alone got a token; it waits until all others are tested.
            for sequence in list(self._running.values()):
                self._withdraw(sequence)
                self._isolation.clear(sequence)
        return outputs

    def cancel(self, sequence_id: int) -> list[Event]:
        """End a sequence now and return its last events; return none if it has already ended."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return []
        self._withdraw(sequence)
        try:
            return sequence.finish("interrupted", self._clock())
        except MLX_ERRORS as error:
            return [Failed(_model_error(error, _UNREADABLE))]

    def stream(
        self, request: GenerationRequest, is_interrupted: Callable[[], bool] | None = None
    ) -> Generator[Event, None, None]:
        """Yield the events of one completion, up to `Finished`; raise its error if it fails.

        Before each step, call `is_interrupted`, and end the completion if it returns true. Closing the iterator cancels
        the request. Use this only on a runner without other sequences, because their events are dropped.
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
        """Drop all sequences, and free the memory of the batch."""
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

    def _begin_isolation(self, error: Exception) -> list[Output]:
        """Drop the batch. If it had one sequence, that one fails; otherwise begin to test each sequence alone."""
        sequences = self._drop_faulty_batch(error)
        if len(sequences) > 1:
            self._isolation = Isolation(sequences, error)
            return []
        return [self._fail(sequence, _model_error(error)) for sequence in sequences]

    def _continue_isolation(self) -> list[Output]:
        """Begin to test the next sequence; if all are tested, let the remaining ones continue together."""
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
                outputs.append(self._fail(newest, _model_error(isolation.error)))
            inserted = isolation.waiting
        for sequence in inserted:
            try:
                self._insert(sequence)
            except MLX_ERRORS as error:
                outputs.append(self._fail(sequence, _model_error(error)))
        return outputs

    def _advance(self, step: Step, now: float) -> list[Output]:
        """Add a step's token to its sequence; if the token can't be decoded, only this sequence fails."""
        sequence = self._sequences[step.sequence_id]
        if step.finish_reason is not None:
            # The batch has already dropped this sequence.
            self._running.pop(sequence.id, None)
        if step.token == NO_TOKEN:
            return [self._fail(sequence, ModelError(_NO_NUMBERS))]
        try:
            events = sequence.advance(step, now)
        except MLX_ERRORS as error:
            return [self._fail(sequence, _model_error(error, _UNREADABLE))]
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
        """Remove a sequence from the batch or the isolation; if that fails, continue the others in a new batch."""
        if self._isolation is not None:
            self._isolation.discard(sequence)
        if self._running.pop(sequence.id, None) is None or self._batch is None:
            return
        try:
            self._batch.remove(sequence.id)
        except MLX_ERRORS as error:
            logging.getLogger(__name__).warning("A sequence could not be removed from the batch: %s", error)
            others = self._drop_faulty_batch(error)
            self._isolation = self._isolation or Isolation((), error)
            for other in others:
                self._isolation.add(other)

    def _drop_faulty_batch(self, error: Exception) -> list[Sequence]:
        """Drop a batch whose state is unknown after an error; return its sequences."""
        sequences = list(self._running.values())
        free_frames(error)
        if isinstance(error, _MEMORY_ERRORS):
            self._prompts.clear()
        self._drop_batch()
        return sequences

    def _drop_batch(self) -> None:
        self._running.clear()
        batch, self._batch = self._batch, None
        if batch is not None:
            batch.close()


def _model_error(error: Exception, what: str = _FAILED) -> ModelError:
    return ModelError(f"{what}: {reason_of(error)}")
