"""What the runner asks of a model in memory: rows that are generated together."""

from __future__ import annotations

import traceback
from array import array
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, overload

from mlxk2.runner.output.text import Vocabulary
from mlxk2.runner.prompt_cache import PromptCache
from mlxk2.runner.request import GenerationRequest

# What Python code around MLX raises, MLX itself included.
FAULTS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError,
    ValueError,
)


def free_frames(fault: BaseException) -> None:
    """Let go of what the functions that a fault went through hold: states and weights, as long as the fault is kept."""
    chain: list[BaseException | None] = [fault]
    seen: set[int] = set()
    while chain:
        link = chain.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            traceback.clear_frames(link.__traceback__)
            chain += [link.__cause__, link.__context__]


class Likeliest(Sequence[tuple[int, float]]):
    """Tokens with their logprobs, in as little room as they need: of one answer there may be a million."""

    __slots__ = ("_logprobs", "_tokens")

    def __init__(self, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        self._tokens = array("I", tokens)
        self._logprobs = array("f", logprobs)

    def __len__(self) -> int:
        return len(self._tokens)

    @overload
    def __getitem__(self, index: int) -> tuple[int, float]: ...

    @overload
    def __getitem__(self, index: slice) -> Likeliest: ...

    def __getitem__(self, index: int | slice) -> tuple[int, float] | Likeliest:
        if isinstance(index, slice):
            return Likeliest(self._tokens[index], self._logprobs[index])
        return self._tokens[index], self._logprobs[index]


class TokenLogprob(NamedTuple):
    """The natural logarithm of a chosen token's probability, and of those of the likeliest tokens, largest first."""

    token: int
    logprob: float
    top: Sequence[tuple[int, float]]


class Place(NamedTuple):
    """A row of the batch, and how many tokens of its prompt need not be computed, as far as is known now."""

    row: int
    cached_tokens: int = 0


# In the place of a token: the model computed no numbers to choose one by.
NO_TOKEN = -1


class Step(NamedTuple):
    """The next token of a row of the batch, and why it was the last one; its probability if the request asks for it.

    `cached_tokens` of the row's prompt did not have to be computed; None where nothing new is known of that.
    """

    row: int
    token: int
    finish_reason: Literal["stop", "length"] | None
    logprob: TokenLogprob | None = None
    cached_tokens: int | None = None


class Rows(Protocol):
    """The rows that are generated together; `batch.Batch` on MLX, a script in tests."""

    def insert(self, request: GenerationRequest, max_tokens: int, answered: Sequence[int] = ()) -> Place:
        """Add a row that goes on after these tokens of its answer, up to `max_tokens` in all."""

    def next(self) -> list[Step]:
        """Do the next piece of work; return the tokens it gave, at most one for each row."""

    def remove(self, row: int) -> None:
        """Drop a row."""

    def close(self) -> None:
        """Give back what the rows have reserved."""


class Backend(Protocol):
    """A model in memory; `backend.LoadedModel` on MLX, a script in tests."""

    @property
    def vocabulary(self) -> Vocabulary:
        """How tokens become text."""

    @property
    def vocabulary_size(self) -> int:
        """How many tokens the model knows; ids are below it."""

    @property
    def context_length(self) -> int | None:
        """How many tokens the model can hold, prompt and answer together; None where nothing says it."""

    @property
    def prompt_cache_bytes(self) -> int:
        """How many bytes there are for what was computed for earlier prompts."""

    def batch(self, max_rows: int, prompts: PromptCache) -> Rows:
        """Return a new, empty batch, whose rows wait while that many are decoded, and which keeps prompts there."""
