"""The common fields of OpenAI's two endpoints for completions, and the requests for the runner that they make.

A body is checked before anything else happens. Null means the same as a missing field. Fields that OpenAI does not
define are ignored. Fields that OpenAI defines and this server does not support yet are refused (`UNSUPPORTED_FIELDS`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mlxk2.errors import ValidationError
from mlxk2.runner.output.stops import StopStrings
from mlxk2.runner.prompt.prompter import Prompt
from mlxk2.runner.request import GenerationRequest, Sampling, default_max_tokens, token_budget
from mlxk2.server.preparing import PromptModel

_MAX_INT = (1 << 31) - 1
Text = Annotated[str, Field(strict=True)]
Some = Annotated[str, StringConstraints(min_length=1, strict=True)]
# Searching for a stop string takes time for each of its characters.
Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000, strict=True)]
Token = Annotated[int, Field(ge=0, le=_MAX_INT, strict=True)]
Seed = Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1, strict=True)]
Count = Annotated[int, Field(ge=1, le=_MAX_INT, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Item = TypeVar("Item")
# The response describes only the first fault, so stop there.
Several = Annotated[list[Item], Field(min_length=1, fail_fast=True)]
Tokens = Several[Token]
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_CHOICES = 128
MAX_BIASES = 10_000  # Each bias takes time in each sequence.
# For the chosen and the likeliest tokens of one request; each takes about 200 bytes until the response is sent.
MAX_LOGPROBS_HELD = 1 << 21
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
_SEEDS = 1 << 64


def _number(low: float, high: float, default: float, what: str) -> Any:
    description = f"{what} Default: {default:g}."
    return Field(default=None, ge=low, le=high, strict=True, allow_inf_nan=False, description=description)


# Fields of OpenAI or of other servers for features that this server does not support yet. A request that uses one is
# refused, because without the field the response would be wrong. Each field has the values that have no effect; null
# never has one.
UNSUPPORTED_FIELDS: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "documents": ([],),
    "ebnf": (),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "grammar": (),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_json_object": (False,),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "include_obfuscation": (False,),
    "json_schema": (),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": (),
    "refusal": (),
    "regex": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "structured_outputs": (),
    "suffix": ("",),
    "think": (),
    "tool_call_id": (),
    "tool_calls": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}


def refuse_unsupported(fields: Mapping[str, object]) -> None:
    """Raise pydantic's error with the name of the field if one of these fields asks for an unsupported feature."""
    for name, value in fields.items():
        if name not in UNSUPPORTED_FIELDS or value is None:
            continue
        # Compare the types too, because True == 1 in Python.
        if not any(type(value) is type(idle) and value == idle for idle in UNSUPPORTED_FIELDS[name]):
            raise PydanticCustomError("unsupported", "{name} is not supported.", {"name": name})


class Fields(BaseModel):
    """The fields of a body, or of an object in it."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class StreamOptions(Fields):
    """Options of a stream."""

    include_usage: Flag | None = Field(
        default=None, description="Whether the stream ends with a chunk that has the usage. Default: false."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_unsupported(self.model_extra or {})
        return self


class GenerationBody(Fields):
    """The fields that chat and plain completions have in common."""

    model: Some | None = Field(
        default=None,
        description="The model: its name, `name@hash`, or a part of its name that no other model has. Default: the "
        "model that the server was started with, else the one in memory.",
    )
    max_tokens: Count | None = Field(
        default=None,
        description="The most tokens that may be generated. Default: what the server was started with "
        "(`--max-tokens`), else half of the model's context, or 4,096 if its files name none. Never more than the "
        "context has left.",
    )
    temperature: float | None = _number(
        0, 2, 1, "How freely tokens are chosen: 0 takes the likeliest, 1 follows the model's probabilities."
    )
    top_p: float | None = _number(0, 1, 1, "Choose among the likeliest tokens that together are this probable.")
    top_k: Annotated[int, Field(ge=0, le=_MAX_INT, strict=True)] | None = Field(
        default=None, description="Choose among this many of the likeliest tokens; 0 means all. Default: 0."
    )
    min_p: float | None = _number(0, 1, 0, "Leave out tokens less probable than this fraction of the likeliest one.")
    seed: Seed | None = Field(
        default=None, description="The same seed gives the same text. Default: another text each time."
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = Field(
        default=None, description="One or several texts that end the generated text; they are not part of it."
    )
    stream: Flag | None = Field(
        default=None, description="Whether to send the text in parts while it is generated. Default: false."
    )
    stream_options: StreamOptions | None = Field(
        default=None, description="What else a stream contains; only with `stream`."
    )
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES, strict=True)] | None = Field(
        default=None, description="How many texts to generate for each prompt, at most `--max-concurrent`. Default: 1."
    )
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, strict=True)]] | None = Field(
        default=None,
        max_length=MAX_BIASES,
        description="What to add to the logits of tokens, by token id: -100 bans a token, 100 forces it.",
    )
    presence_penalty: float | None = _number(
        -2, 2, 0, "Subtracted from the logits of tokens that have been generated for this text."
    )
    frequency_penalty: float | None = _number(
        -2, 2, 0, "Subtracted once for each time that the token has been generated for this text."
    )
    repetition_penalty: float | None = _number(
        0.01, 100, 1, "A value above 1 makes the last 64 tokens of the prompt and the text less likely to be repeated."
    )
    user: Text | None = Field(default=None, description="Accepted for compatibility; has no effect.")

    @field_validator("logit_bias")
    @classmethod
    def _check_tokens(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        for token in bias or {}:
            if not (token.isascii() and token.isdigit() and len(token) < 11):
                raise PydanticCustomError(
                    "token", "Invalid 'logit_bias': {token} is not the id of a token.", {"token": repr(token[:20])}
                )
        return bias

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        refuse_unsupported(self.model_extra or {})
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "together", "'stream_options' is only allowed when 'stream' is true.", {"name": "stream_options"}
            )
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def count(self) -> int:
        """The number of sequences to generate."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def limit(self) -> int | None:
        """The most tokens that may be generated."""
        return self.max_tokens

    @property
    @abstractmethod
    def likeliest_count(self) -> int | None:
        """The number of likeliest tokens to return for each token; None means no logprobs."""

    @abstractmethod
    def requests(self, model: PromptModel, default_limit: int | None) -> Sequence[GenerationRequest]:
        """Return one request for each completion; `default_limit` applies if the body sets no limit."""

    def continue_prompt(
        self,
        prompt: Prompt,
        model: PromptModel,
        default_limit: int | None,
        *,
        plain: bool = False,
        continues: bool = False,
    ) -> list[GenerationRequest]:
        """Return one request for each of the `n` completions of a prompt; see GenerationRequest for the options."""
        if not prompt.tokens:
            raise ValidationError("The prompt is empty, and the model has no token for the beginning of a text.")
        limit = self.limit or default_limit or default_max_tokens(model.context_length)
        given = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        bias = tuple((int(token), value) for token, value in (self.logit_bias or {}).items())
        request = GenerationRequest(
            prompt.tokens,
            limit,
            Sampling(**given, logit_bias=bias),
            StopStrings(self.stops),
            thinking=not plain and prompt.thinking,
            likeliest_count=self.likeliest_count,
            plain=plain,
            continues=continues,
        )
        count, seed = self.n or 1, request.sampling.seed
        if seed is None:
            return [request] * count
        # With the same seed, all completions would have the same text.
        seeds = ((seed + number) % _SEEDS if number else seed for number in range(count))
        return [replace(request, sampling=replace(request.sampling, seed=each)) for each in seeds]

    def limit_logprobs(
        self, requests: Sequence[GenerationRequest], context_length: int | None
    ) -> Sequence[GenerationRequest]:
        """Limit the requests so that the logprobs of all completions fit into memory until the response is sent.

        If the client set a limit of tokens that is too large for that, raise ValidationError.
        """
        if self.stream or self.likeliest_count is None:
            return requests
        each = self.likeliest_count + 1
        if self.limit is None:
            limit = max(1, MAX_LOGPROBS_HELD // (each * len(requests)))
            return [replace(request, max_tokens=min(request.max_tokens or limit, limit)) for request in requests]
        tokens = sum(token_budget(request, context_length) for request in requests)
        if tokens * each > MAX_LOGPROBS_HELD:
            raise ValidationError(
                f"The response may have {tokens:,} tokens with {each} logprobs each, but the server keeps at most "
                f"{MAX_LOGPROBS_HELD:,} for a request. Ask for fewer, or for a stream.",
                param="max_tokens",
            )
        return requests
