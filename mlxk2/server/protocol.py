"""What clients send: OpenAI's request bodies as types, checked before anything else happens.

Null means "not given", and so does leaving a field out. Fields that OpenAI does not define are ignored; those that it
defines and this server does not have yet are refused by name (`unsupported.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mlxk2.server.unsupported import refuse_unsupported

Text = Annotated[str, Field(strict=True)]
Some = Annotated[str, StringConstraints(min_length=1, strict=True)]
Token = Annotated[int, Field(ge=0, lt=1 << 31, strict=True)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63, strict=True)]
Count = Annotated[int, Field(ge=1, lt=1 << 31, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
MOST_LOGPROBS = 20


def _number(low: float, high: float) -> Any:
    return Field(default=None, ge=low, le=high, strict=True, allow_inf_nan=False)


class _Fields(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class TextPart(_Fields):
    """A part of a message; only text is understood, and nothing is ever fetched."""

    type: Literal["text"]
    text: Text


class Message(_Fields):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart] | None = None
    name: Text | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_unsupported(self.model_extra or {})
        if self.content is None and self.role != "assistant":
            raise PydanticCustomError("missing", "A {role} message needs content.", {"role": self.role})
        return self

    @property
    def text(self) -> str:
        """The content, its parts joined."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(_Fields):
    """What else a stream tells."""

    include_usage: Flag | None = None


class GenerationBody(_Fields):
    """What chat and plain completions have in common."""

    model: Some | None = Field(default=None, description="The model to use; by default the one that is loaded.")
    max_tokens: Count | None = None
    temperature: float | None = _number(0, 2)
    top_p: float | None = _number(0, 1)
    top_k: Annotated[int, Field(ge=0, lt=1 << 31, strict=True)] | None = None
    min_p: float | None = _number(0, 1)
    seed: Seed | None = None
    stop: Some | Annotated[list[Some], Field(max_length=16)] | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128, strict=True)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, strict=True)]] | None = None
    presence_penalty: float | None = _number(-2, 2)
    frequency_penalty: float | None = _number(-2, 2)
    repetition_penalty: float | None = _number(0.01, 100)
    user: Text | None = None

    @field_validator("logit_bias")
    @classmethod
    def _check_tokens(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        for token in bias or {}:
            if not (token.isascii() and token.isdigit() and len(token) < 11):
                raise PydanticCustomError("token", "logit_bias: {token} is not the id of a token.", {"token": token})
        return bias

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        refuse_unsupported(self.model_extra or {})
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options needs stream to be true.")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """Whether the stream is to end with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatBody(GenerationBody):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: Flag | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS, strict=True)] | None = None

    @model_validator(mode="after")
    def _check_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "top_logprobs needs logprobs to be true.")
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens an answer may have; the newer name counts where both are given."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """How many alternatives to report beside each token; None reports nothing."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(GenerationBody):
    """The body of `POST /v1/completions`."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1)]
    )
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS, strict=True)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)
