"""The parameters of a generation, with their checks, and the limits of the model's context. Does not import MLX."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from mlxk2.errors import ContextLengthError, ValidationError

DEFAULT_MAX_TOKENS = 4096  # Of a completion, if neither the request nor the model sets a limit.
_UNLIMITED = 1 << 40  # Tokens; more than any memory can hold.
_MIN_TEMPERATURE = 1e-4  # With a lower temperature, logits overflow; then choose the most likely token.
_MIN_TOP_P = 1e-30  # A smaller number is zero in MLX's float32; then choose the most likely token.
MAX_PROMPT_CHARACTERS = 1 << 25  # Far longer than any context; text can be endless, so no more of it is read.
_MAX_LIKELIEST = 20  # OpenAI's limit.
_INTEGER_LIMIT = 1 << 64  # All numbers are smaller, because MLX takes a seed as an unsigned 64-bit integer.


class Biases(tuple[tuple[int, float], ...]):
    """Pairs of a token and the number to add to its logit, checked once for all completions of a request.

    `max_token` is the largest token, or -1 if there are no pairs. `arrays` holds the sampler's arrays of the biases, by
    the width of the logits. Raise ValidationError for wrong values.
    """

    max_token: int
    arrays: dict[int, Any]

    def __new__(cls, pairs: Iterable[tuple[int, float]] = ()) -> Biases:
        """Check the pairs; return pairs that were already checked unchanged."""
        if isinstance(pairs, Biases):
            return pairs
        biases = super().__new__(cls, pairs)
        for token, bias in biases:
            _check_integer("logit_bias", token, 0)
            _check_range("logit_bias", bias, -100, 100)
        biases.max_token = max((token for token, _ in biases), default=-1)
        biases.arrays = {}
        return biases


@dataclass(frozen=True)
class Sampling:
    """The rules for choosing the next token; the defaults have no effect. Raise ValidationError for wrong values."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0, 100)
        _check_range("top_p", self.top_p, 0, 1)
        _check_range("min_p", self.min_p, 0, 1)
        _check_range("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _check_range("presence_penalty", self.presence_penalty, -100, 100)
        _check_range("frequency_penalty", self.frequency_penalty, -100, 100)
        _check_integer("top_k", self.top_k, 0)
        object.__setattr__(self, "logit_bias", Biases(self.logit_bias))
        if self.seed is not None:
            _check_integer("seed", self.seed, -_INTEGER_LIMIT)

    @property
    def is_greedy(self) -> bool:
        """Whether only the most likely token can be chosen."""
        return self.temperature < _MIN_TEMPERATURE or self.top_p < _MIN_TOP_P or self.top_k == 1


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to generate from a prompt of token ids.

    If `max_tokens` is None, the limit is the rest of the context. `stop` strings end the completion and are not part of
    it. `thinking` is true if the prompt ends inside a thought; None means unknown. With `likeliest_count`, report the
    logprobs of each chosen token and of so many most likely tokens; None reports nothing. A `plain` completion
    continues the prompt's text: it is not searched for marks, and its first space belongs to it. A completion that
    `continues` a message keeps its first space too. The prompts of different `client`s take turns.
    """

    prompt: tuple[int, ...]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    thinking: bool | None = False
    likeliest_count: int | None = None
    plain: bool = False
    client: Hashable = None
    continues: bool = False

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValidationError("The prompt is empty.")
        check_max_tokens(self.max_tokens)
        if "" in self.stop:
            raise ValidationError("stop must not be an empty string.")
        if self.likeliest_count is not None:
            _check_range("logprobs", self.likeliest_count, 0, _MAX_LIKELIEST)


def check_max_tokens(value: int | None) -> None:
    """Raise ValidationError unless the value is a valid limit for the tokens of a completion."""
    if value is not None:
        _check_integer("max_tokens", value, 1)


def check_context_length(value: int | None) -> None:
    """Raise ValidationError unless the value is a valid length of a model's context, in tokens."""
    if value is not None:
        _check_integer("context_length", value, 1)


def default_max_tokens(context: int | None) -> int:
    """Return the limit of tokens for a request that sets none: half of the context."""
    return DEFAULT_MAX_TOKENS if context is None else max(1, context // 2)


def token_budget(request: GenerationRequest, context: int | None) -> int:
    """Return how many tokens may be generated after the prompt; raise ContextLengthError if the context has no room.

    `context` is the length of the context in tokens; if it is None, only memory is the limit.
    """
    if context is None:
        return request.max_tokens or _UNLIMITED
    left = context - len(request.prompt)
    if left <= 0:
        raise too_long(str(len(request.prompt)), context)
    return left if request.max_tokens is None else min(request.max_tokens, left)


def check_tokens(request: GenerationRequest, size: int) -> None:
    """Raise ValidationError for a token that is not in a vocabulary of this size."""
    # MLX does not check indices; with a wrong one it would read past its arrays.
    if not 0 <= min(request.prompt) <= max(request.prompt) < size:
        raise ValidationError(f"The prompt has a token that the model does not know (it has {size}).")
    max_token = Biases(request.sampling.logit_bias).max_token
    if max_token >= size:
        message = f"logit_bias names token {max_token}, but the model has {size} tokens."
        raise ValidationError(message, param="logit_bias")


def too_long(count: str, context: int) -> ContextLengthError:
    """Return the error for a prompt that is too long; `count` is its number of tokens, or "more than" a number."""
    return ContextLengthError(
        f"The prompt has {count} tokens, but the model's context has {context} "
        "and needs room for an answer. Shorten the prompt."
    )


def _check_range(option: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not math.isfinite(value) or not low <= value <= high:
        raise ValidationError(f"{option} must be a number from {low} to {high}, not {value}.")


def _check_integer(option: str, value: int, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < _INTEGER_LIMIT:
        raise ValidationError(f"{option} must be a whole number of at least {low}, not {value}.")
