"""Sequences, each of them one generation on its way, and what the runner needs of a model in memory."""

from __future__ import annotations

import traceback
from collections import abc
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from mlxk2.errors import MlxkError
from mlxk2.runner.output.logprobs import TokenLogprob
from mlxk2.runner.output.reasoning import Delta, Kind
from mlxk2.runner.output.text import TextStream, Vocabulary
from mlxk2.runner.prompt_cache import PromptCache
from mlxk2.runner.request import GenerationRequest

# What Python code around MLX raises, MLX itself included.
FAULTS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
# Stands in the place of a token if the model computed no numbers to choose one by.
NO_TOKEN = -1

FinishReason = Literal["stop", "length", "interrupted", "error"]


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


@dataclass(frozen=True)
class Chunk:
    """The next text of a completion.

    `tokens` counts all tokens generated so far, the end token and hidden ones included. `logprobs` are those of the
    tokens that the answer consists of; reasoning, marks and stop strings have none.
    """

    text: str
    kind: Kind
    tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class Step(NamedTuple):
    """The next token of a sequence, why it was the last one, and its probability if the request asks for it.

    `cached_tokens` of the prompt did not have to be computed; None if nothing new is known of that.
    """

    sequence_id: int
    token: int
    finish_reason: Literal["stop", "length"] | None
    logprob: TokenLogprob | None = None
    cached_tokens: int | None = None


class Sequence:
    """One generation on its way: the request and its completion so far.

    `completion` has the token ids. `cached_tokens` of the prompt did not have to be computed. `error` says why the
    sequence failed if it ended with the reason `error`.
    """

    def __init__(self, sequence_id: int, request: GenerationRequest, text: TextStream, max_tokens: int) -> None:
        self.id = sequence_id
        self.request = request
        self.max_tokens = max_tokens
        self.cached_tokens = 0
        self.completion: list[int] = []
        self.ended = False
        self.error: MlxkError | None = None
        self._text = text

    @property
    def tokens(self) -> int:
        """The number of tokens of the completion so far."""
        return len(self.completion)

    def advance(self, step: Step) -> list[Chunk]:
        """Add the token of a step; return the chunks that it gives, the last one with a reason if the sequence ends."""
        if step.cached_tokens is not None and not self.completion:
            self.cached_tokens = step.cached_tokens
        self.completion.append(step.token)
        deltas = self._text.add(step.token, step.logprob)
        if step.finish_reason is None and not self._text.stopped:
            return [self._chunk(text, kind) for kind, text in deltas]
        return self.finish(step.finish_reason or "stop", deltas)

    def finish(self, reason: FinishReason, deltas: abc.Sequence[Delta] = ()) -> list[Chunk]:
        """End the sequence; return these deltas, then the text still held back, then the reason.

        A stop string is a stronger reason than any other.
        """
        self.ended = True
        kind: Kind = "answer"
        chunks = []
        for kind, text in [*deltas, *self._text.finish()]:
            chunks.append(self._chunk(text, kind))
        return [*chunks, self._chunk("", kind, "stop" if self._text.stopped else reason)]

    def fail(self, error: MlxkError) -> Chunk:
        """End the sequence with an error; return its last chunk."""
        self.ended, self.error = True, error
        return Chunk("", "answer", self.tokens, "error")

    def _chunk(self, text: str, kind: Kind, reason: FinishReason | None = None) -> Chunk:
        """Return the next chunk, with the logprobs that wait for one."""
        if kind == "reasoning" or not self._text.logprobs:
            return Chunk(text, kind, self.tokens, reason)
        logprobs = tuple(self._text.logprobs)
        self._text.logprobs.clear()
        return Chunk(text, kind, self.tokens, reason, logprobs)


class Batch(Protocol):
    """The sequences that are generated together; those of `mlx.batch` on MLX, a script in tests."""

    def insert(
        self, sequence_id: int, request: GenerationRequest, max_tokens: int, completion: abc.Sequence[int] = ()
    ) -> int:
        """Add a sequence that continues after these tokens of its completion, up to `max_tokens` in all.

        Return how many tokens of its prompt need not be computed, as far as is known now.
        """

    def next(self) -> list[Step]:
        """Do the next piece of work; return the tokens it gave, at most one for each sequence."""

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
