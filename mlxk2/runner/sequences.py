"""Sequences, each of them one generation on its way, and what the runner needs of a model in memory."""

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

# What Python code around MLX raises, MLX itself included.
FAULTS = (
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
# Stands in the place of a token if the model computed no numbers to choose one by.
NO_TOKEN = -1


def free_frames(fault: BaseException) -> None:
    """Free what the functions that a fault went through hold, states and weights, while the fault itself stays."""
    chain: list[BaseException | None] = [fault]
    seen: set[int] = set()
    while chain:
        link = chain.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            traceback.clear_frames(link.__traceback__)
            chain += [link.__cause__, link.__context__]


class Step(NamedTuple):
    """The next token of a sequence, why it was the last one, and its probability if the request asks for it."""

    sequence_id: int
    token: int
    finish_reason: Literal["stop", "length"] | None
    logprob: TokenLogprob | None = None


class Reading(NamedTuple):
    """How far the prompt of a sequence has been read: `done` tokens, of which `cached_tokens` were not computed.

    This step computed `tokens` of them for this sequence, in so many seconds.
    """

    sequence_id: int
    done: int
    cached_tokens: int
    tokens: int
    seconds: float


class Sequence:
    """One generation on its way: the request, its completion so far, and its times.

    `completion` has the token ids.
    """

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
        # When these happened; a sequence without a token has neither a first nor a last one.
        self._submitted = submitted
        self._first = self._last = submitted

    def read(self, reading: Reading) -> list[Event]:
        """Add what was read of the prompt; return the progress, unless it is read again after a fault."""
        self._read_tokens += reading.tokens
        self._reading_seconds += reading.seconds
        if self.completion:
            return []
        self._cached_tokens = reading.cached_tokens
        return [PromptProgress(reading.done, len(self.request.prompt))]

    def advance(self, step: Step, now: float) -> list[Event]:
        """Add the token of a step; return the events that it gives, the last one `Finished` if the sequence ends."""
        if not self.completion:
            self._first = now
        self._last = now
        self.completion.append(step.token)
        deltas = self._text.add(step.token, step.logprob)
        if step.finish_reason is None and not self._text.stopped:
            return [self._delta(channel, text) for channel, text in deltas]
        return self.finish(step.finish_reason or "stop", now, deltas)

    def finish(self, reason: FinishReason, now: float, deltas: abc.Sequence[Delta] = ()) -> list[Event]:
        """Return these deltas, then the text still held back, then the end.

        A stop string is a stronger reason than any other.
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
        """Return the next delta, with the logprobs that wait for one."""
        if channel == "reasoning" or not self._text.logprobs:
            return TextDelta(channel, text)
        logprobs = tuple(self._text.logprobs)
        self._text.logprobs.clear()
        return TextDelta(channel, text, logprobs)


class Batch(Protocol):
    """The sequences that are generated together; those of `mlx.batch` on MLX, a script in tests."""

    def insert(
        self, sequence_id: int, request: GenerationRequest, max_tokens: int, completion: abc.Sequence[int] = ()
    ) -> None:
        """Add a sequence that continues after these tokens of its completion, up to `max_tokens` in all."""

    def next(self) -> list[Step | Reading]:
        """Do the next piece of work; return what it gave: for each sequence at most one reading, then one token."""

    def remove(self, sequence_id: int) -> None:
        """Drop a sequence."""

    def close(self) -> None:
        """Give back the memory that the batch has reserved."""


class Backend(Protocol):
    """A model in memory; `mlx.loader.LoadedModel` on MLX, a script in tests."""

    @property
    def vocabulary(self) -> Vocabulary:
        """How tokens become text."""

    @property
    def vocabulary_size(self) -> int:
        """How many tokens the model knows; ids are below it."""

    @property
    def context_length(self) -> int | None:
        """How many tokens the model can hold, prompt and completion together; None if that is not known."""

    @property
    def prompt_cache_bytes(self) -> int:
        """How many bytes the prompt cache may take."""

    @property
    def max_cached_arrays(self) -> int | None:
        """How many arrays the prompt cache may have; None if the device sets no limit."""

    def batch(self, max_sequences: int, prompts: PromptCache) -> Batch:
        """Return a new, empty batch that decodes so many sequences at a time, and retains states in `prompts`."""
