"""The events of a generation: frozen values. This module does not import MLX.

The events of a sequence come in the order of its text. The last one is either `Finished` or `Failed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlxk2.errors import MlxkError
from mlxk2.runner.output.logprobs import TokenLogprob

# A completion's text is content for the user, or reasoning before it.
Channel = Literal["content", "reasoning"]
FinishReason = Literal["stop", "length", "interrupted"]


@dataclass(frozen=True)
class TextDelta:
    """The next text of a completion.

    `logprobs` are those of the content's tokens; reasoning, marks and stop strings have none.
    """

    channel: Channel
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class PromptProgress:
    """The number of tokens of the prompt that have been read; one step gives a sequence at most one such event."""

    done: int
    total: int


@dataclass(frozen=True)
class Usage:
    """The numbers of tokens of one sequence; `cached_tokens` of the prompt came from the prompt cache.

    `completion_tokens` includes the end token and hidden tokens.
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
        """The speed of computing the prompt, or None if no token of it was computed."""
        return self.read_tokens / self.reading_seconds if self.read_tokens and self.reading_seconds > 0 else None

    @property
    def generated_tokens_per_second(self) -> float | None:
        """The speed of generating the tokens after the first one, or None without such tokens."""
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
