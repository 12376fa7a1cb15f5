"""A runner with observable sequences: the tokens of each sequence, as the batch returns them, and its events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mlxk2.errors import MlxkError
from mlxk2.runner.events import Event, Failed, Finished, TextDelta
from mlxk2.runner.output.logprobs import TokenLogprob
from mlxk2.runner.prompt_cache import PromptCache
from mlxk2.runner.request import GenerationRequest
from mlxk2.runner.runner import MLXRunner
from mlxk2.runner.sequences import Backend, Batch, Reading, Step


class Followed:
    """One sequence: its tokens so far, how much of its prompt was cached, and its events."""

    def __init__(self, sequence_id: int, request: GenerationRequest) -> None:
        self.id = sequence_id
        self.request = request
        self.completion: list[int] = []
        self.cached_tokens = 0
        self.events: list[Event] = []
        self.is_dropped = False

    @property
    def tokens(self) -> int:
        """Return how many tokens it has."""
        return len(self.completion)

    @property
    def text(self) -> str:
        """Return its text, reasoning included."""
        return text(self.events, None)

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """Return the logprobs of its tokens."""
        return logprobs(self.events)

    @property
    def ended(self) -> bool:
        """Return whether it has had its last event or was dropped."""
        return self.is_dropped or any(isinstance(event, Finished | Failed) for event in self.events)

    @property
    def error(self) -> MlxkError | None:
        """Return the error with which it failed, if any."""
        return next((event.error for event in self.events if isinstance(event, Failed)), None)


class FollowedRunner:
    """MLXRunner with Followed sequences in place of ids."""

    def __init__(self, backend: Any, **options: Any) -> None:
        self.runner = MLXRunner(_Watched(backend, self._note), **options)
        self.sequences: dict[int, Followed] = {}

    def submit(self, request: GenerationRequest) -> Followed:
        """Queue a request."""
        sequence_id = self.runner.submit(request)
        self.sequences[sequence_id] = Followed(sequence_id, request)
        return self.sequences[sequence_id]

    def step(self) -> list[tuple[Followed, Event]]:
        """Do one step of the runner."""
        outputs = [(self.sequences[sequence_id], event) for sequence_id, event in self.runner.step()]
        for sequence, event in outputs:
            assert not sequence.ended
            sequence.events.append(event)
        return outputs

    def cancel(self, sequence: Followed) -> list[Event]:
        """End a sequence."""
        events = self.runner.cancel(sequence.id)
        sequence.events += events
        return events

    def stream(self, request: GenerationRequest, is_interrupted: Callable[[], bool] | None = None) -> Iterator[Event]:
        """Generate one completion."""
        return self.runner.stream(request, is_interrupted)

    def close(self) -> None:
        """Drop all sequences."""
        self.runner.close()
        for sequence in self.sequences.values():
            sequence.is_dropped = True

    def finish(self, sequences: Iterable[Followed]) -> None:
        """Step until these have ended."""
        while not all(sequence.ended for sequence in sequences):
            self.step()

    def _note(self, step: Step | Reading) -> None:
        sequence = self.sequences.get(step.sequence_id)
        if sequence is None:
            return
        if isinstance(step, Step):
            sequence.completion.append(step.token)
        elif not sequence.completion:
            sequence.cached_tokens = step.cached_tokens


class _Watched:
    """A backend whose batches report their results."""

    def __init__(self, backend: Backend, note: Callable[[Step | Reading], None]) -> None:
        self._backend, self._note = backend, note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def batch(self, max_sequences: int, prompts: PromptCache) -> Batch:
        """Return a batch of the backend."""
        return _WatchedBatch(self._backend.batch(max_sequences, prompts), self._note)


class _WatchedBatch:
    def __init__(self, batch: Batch, note: Callable[[Step | Reading], None]) -> None:
        self._batch, self._note = batch, note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def next(self) -> list[Step | Reading]:
        """Do the next piece of work."""
        steps = self._batch.next()
        for step in steps:
            self._note(step)
        return steps


def text(events: Iterable[Event], channel: str | None = "content") -> str:
    """Return the joined text of one channel, or of all."""
    deltas = (event for event in events if isinstance(event, TextDelta))
    return "".join(delta.text for delta in deltas if channel in (delta.channel, None))


def logprobs(events: Iterable[Event]) -> list[TokenLogprob]:
    """Return the logprobs of all tokens."""
    return [entry for event in events if isinstance(event, TextDelta) for entry in event.logprobs]


def finished(events: list[Event]) -> Finished:
    """Return the last event, which is the end of a completion."""
    last = events[-1]
    assert isinstance(last, Finished)
    return last
