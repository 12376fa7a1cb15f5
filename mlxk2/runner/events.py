"""What comes out of a generation, event by event: plain frozen values, without MLX.

The events of a sequence come in the order of its text. The last one is `Finished` or `Failed`, and there is only one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlxk2.errors import MlxkError
from mlxk2.runner.output.logprobs import TokenLogprob

# What a text of a completion is.
Channel = Literal["answer", "reasoning"]
FinishReason = Literal["stop", "length", "interrupted"]


@dataclass(frozen=True)
class TextDelta:
    """The next text of a completion.

    `logprobs` are those of the tokens that the answer consists of; reasoning, marks and stop strings have none.
    """

    channel: Channel
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class PromptProgress:
    """How many of the prompt's tokens have been read; a step of the runner gives at most one for a sequence."""

    done: int
    total: int


@dataclass(frozen=True)
class Usage:
    """The tokens of one sequence; `cached_tokens` of the prompt did not have to be computed.

    The completion's tokens include the end token and hidden ones.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """The times of one sequence in seconds: from `submit` to its end, and to its first token if it has one.

    `read_tokens` of the prompt were computed in `reading_seconds`. `later_tokens`, all but the first one of the
    completion, were generated in `later_seconds`.
    """

    total_seconds: float
    first_token_seconds: float | None
    read_tokens: int
    reading_seconds: float
    later_tokens: int
    later_seconds: float

    @property
    def prompt_tokens_per_second(self) -> float | None:
        """How fast the prompt was computed; None if nothing of it was."""
        return self.read_tokens / self.reading_seconds if self.read_tokens and self.reading_seconds > 0 else None

    @property
    def generated_tokens_per_second(self) -> float | None:
        """How fast the tokens after the first one were generated; None without such tokens."""
        return self.later_tokens / self.later_seconds if self.later_tokens and self.later_seconds > 0 else None


@dataclass(frozen=True)
class Finished:
    """The end of a completion."""

    reason: FinishReason
    usage: Usage
    timings: Timings


@dataclass(frozen=True)
class Failed:
    """The end of a sequence by an error."""

    error: MlxkError


Event = TextDelta | PromptProgress | Finished | Failed
