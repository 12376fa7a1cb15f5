"""A sequence is one generation in progress. This module also has the interfaces of a batch and of a loaded model."""

from __future__ import annotations

import traceback
from collections import abc
from typing import Literal, NamedTuple, Protocol

from mlxk2.runner.events import Channel, Event, Finished, FinishReason, PromptProgress, TextDelta, Timings, Usage
from mlxk2.runner.output.logprobs import TokenLogprob
from mlxk2.runner.output.reasoning import Delta
from mlxk2.runner.output.text import TextStream, Vocabulary
from mlxk2.runner.prompt_cache import PromptCache
from mlxk2.runner.request import GenerationRequest

# The exceptions of MLX and of the Python code around it.
MLX_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
NO_TOKEN = -1  # Takes the place of a token that was chosen from NaN.


def free_frames(error: BaseException) -> None:
    """Free the local variables of the functions in an exception's traceback, which can hold states and weights."""
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        link = chain.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            traceback.clear_frames(link.__traceback__)
            chain += [link.__cause__, link.__context__]


class Step(NamedTuple):
    """The next token of a sequence, the finish reason if it is the last one, and its logprob if requested."""

    sequence_id: int
    token: int
    finish_reason: Literal["stop", "length"] | None
    logprob: TokenLogprob | None = None


class Reading(NamedTuple):
    """The progress of a sequence's prompt: `done` tokens are read; `cached_tokens` of them came from the prompt cache.

    This step computed `computed_tokens` for this sequence in `seconds`.
    """

    sequence_id: int
    done: int
    cached_tokens: int
    computed_tokens: int
    seconds: float


class Sequence:
    """One generation in progress: the request, the token ids of the completion so far, and the times."""

    def __init__(
        self, sequence_id: int, request: GenerationRequest, text: TextStream, max_tokens: int, submitted: float
    ) -> None:
        self.id = sequence_id
        self.request = request
        self.max_tokens = max_tokens
        self.completion: list[int] = []
        self._text = text
        self._cached_tokens = 0
        self._read_tokens = 0
        self._reading_seconds = 0.0
        # Times; while the sequence has no token, those of the first and the last token have no meaning.
        self._submitted = submitted
        self._first = self._last = submitted

    def read(self, reading: Reading) -> list[Event]:
        """Record how much of the prompt was read; return the progress, unless it is read again after an error."""
        self._read_tokens += reading.computed_tokens
        self._reading_seconds += reading.seconds
        if self.completion:
            return []
        self._cached_tokens = reading.cached_tokens
        return [PromptProgress(reading.done, len(self.request.prompt))]

    def advance(self, step: Step, now: float) -> list[Event]:
        """Add the token of a step and return its events; if the sequence ends, the last one is `Finished`."""
        if not self.completion:
            self._first = now
        self._last = now
        self.completion.append(step.token)
        deltas = self._text.add(step.token, step.logprob)
        if step.finish_reason is None and not self._text.stopped:
            return [self._delta(channel, text) for channel, text in deltas]
        return self.finish(step.finish_reason or "stop", now, deltas)

    def finish(self, reason: FinishReason, now: float, deltas: abc.Sequence[Delta] = ()) -> list[Event]:
        """Return the events for these deltas, for the text that was held back, and for the end.

        If a stop string has ended the text, the finish reason is "stop", whatever `reason` is.
        """
        events: list[Event] = [self._delta(channel, text) for channel, text in [*deltas, *self._text.finish()]]
        usage = Usage(len(self.request.prompt), self._cached_tokens, len(self.completion))
        timings = Timings(
            total_seconds=now - self._submitted,
            first_token_seconds=self._first - self._submitted if self.completion else None,
            read_tokens=self._read_tokens,
            reading_seconds=self._reading_seconds,
            later_tokens=max(len(self.completion) - 1, 0),
            later_seconds=self._last - self._first,
        )
        return [*events, Finished("stop" if self._text.stopped else reason, usage, timings)]

    def _delta(self, channel: Channel, text: str) -> TextDelta:
        """Return the next delta; content gets the logprobs that are waiting."""
        if channel == "reasoning" or not self._text.logprobs:
            return TextDelta(channel, text)
        logprobs = tuple(self._text.logprobs)
        self._text.logprobs.clear()
        return TextDelta(channel, text, logprobs)


class Batch(Protocol):
    """The sequences that are generated together. The classes in `mlx/batch.py` use MLX; tests use a script."""

    def insert(
        self, sequence_id: int, request: GenerationRequest, max_tokens: int, completion: abc.Sequence[int] = ()
    ) -> None:
        """Add a sequence that continues after these tokens of its completion, up to `max_tokens` in total."""

    def next(self) -> list[Step | Reading]:
        """Do the next part of the work; for each sequence, return at most one reading, then at most one token."""

    def remove(self, sequence_id: int) -> None:
        """Drop a sequence."""

    def close(self) -> None:
        """Free the memory of the batch."""


class Backend(Protocol):
    """A model in memory. `mlx.loader.LoadedModel` uses MLX; tests use a script."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary, which decodes tokens to text."""

    @property
    def vocabulary_size(self) -> int:
        """The number of tokens of the model; all token ids are smaller."""

    @property
    def context_length(self) -> int | None:
        """The most tokens of a prompt and its completion together, or None if that is unknown."""

    @property
    def prompt_cache_bytes(self) -> int:
        """The most bytes that the prompt cache may take."""

    @property
    def max_cached_arrays(self) -> int | None:
        """The most arrays that the prompt cache may have, or None if the device sets no limit."""

    def batch(self, max_sequences: int, prompts: PromptCache) -> Batch:
        """Return a new, empty batch that decodes up to `max_sequences` together, and keeps states in `prompts`."""
