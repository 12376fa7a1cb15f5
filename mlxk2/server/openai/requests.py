"""OpenAI's request bodies as types, which are checked before anything else happens.

Null means "not given", and so does leaving a field out. Fields that OpenAI does not define are ignored; those that it
defines and this server does not have yet are refused by name (`UNSUPPORTED_FIELDS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

_MAX_INT = (1 << 31) - 1
Text = Annotated[str, Field(strict=True)]
Some = Annotated[str, StringConstraints(min_length=1, strict=True)]
# Looking for a stop string takes time for each of its characters.
Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000, strict=True)]
Token = Annotated[int, Field(ge=0, le=_MAX_INT, strict=True)]
Seed = Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1, strict=True)]
Count = Annotated[int, Field(ge=1, le=_MAX_INT, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Item = TypeVar("Item")
# The response names only the first fault, so the others need not be found.
Several = Annotated[list[Item], Field(min_length=1, fail_fast=True)]
Tokens = Several[Token]
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_CHOICES = 128
# Far more than any conversation has. Each message takes time.
MAX_MESSAGES = 65_536
# Arguments of transformers' `apply_chat_template` that are not variables of a template, and variables that have a field
# of their own.
RESERVED = frozenset({
    "add_generation_prompt", "chat_template", "context", "continue_final_message", "conversation", "documents",
    "max_length", "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize",
    "tokenizer_kwargs", "tools", "truncation",
})  # fmt: skip
# Each sequence takes time for each bias.
MAX_BIASES = 10_000


def _number(low: float, high: float, default: float, what: str) -> Any:
    description = f"{what} Default: {default:g}."
    return Field(default=None, ge=low, le=high, strict=True, allow_inf_nan=False, description=description)


# Fields that OpenAI or another server defines, and that ask for what this one does not have yet. A request that uses
# one is refused by its name: without it, the response would not be the one that was asked for. Each field has the
# values that ask for nothing, as null always does.
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
    """Raise pydantic's error, which names the field, if one of these asks for what this server does not have."""
    for name, value in fields.items():
        if name not in UNSUPPORTED_FIELDS or value is None:
            continue
        # In Python True == 1, so the types are compared too.
        if not any(type(value) is type(idle) and value == idle for idle in UNSUPPORTED_FIELDS[name]):
            raise PydanticCustomError("unsupported", "{name} is not supported.", {"name": name})


class _Fields(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class TextPart(_Fields):
    """A part of a message: a text. Other parts are refused, and the server never fetches anything."""

    type: Literal["text"] = Field(description="The kind of the part.")
    text: Text = Field(description="The text.")


# Types alone can't say this in the description of the API.
_CONTENT_REQUIRED: JsonDict = {
    "if": {"properties": {"role": {"const": "assistant"}}},
    "else": {"required": ["content"], "properties": {"content": {"not": {"type": "null"}}}},
}


class Message(_Fields):
    """One turn of a conversation."""

    model_config = ConfigDict(json_schema_extra=_CONTENT_REQUIRED)

    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="The speaker; `developer` is the newer name of `system`."
    )
    content: Text | Several[TextPart] | None = Field(
        default=None, description="The text, or parts of it, which are joined. An assistant's message may have null."
    )
    name: Text | None = Field(default=None, description="The speaker's name, for chat templates that use one.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_unsupported(self.model_extra or {})
        if self.content is None and self.role != "assistant":
            raise PydanticCustomError("missing", "Content is missing.", {"name": "content"})
        return self

    @property
    def text(self) -> str:
        """The content, its parts joined."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(_Fields):
    """What else a stream contains."""

    include_usage: Flag | None = Field(
        default=None, description="Whether the stream ends with a chunk that has the usage. Default: false."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_unsupported(self.model_extra or {})
        return self


class GenerationBody(_Fields):
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
        default=None, max_length=MAX_BIASES,
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
        """How many sequences to generate."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatBody(GenerationBody):
    """The body of `POST /v1/chat/completions`."""

    messages: Several[Message] = Field(max_length=MAX_MESSAGES, description="The conversation so far.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Variables for the model's chat template, by name."
    )
    enable_thinking: Flag | None = Field(
        default=None,
        description="Whether the model thinks before it answers: the variable of this name, for chat templates that "
        "use it. Default: the template decides.",
    )
    add_generation_prompt: Flag | None = Field(
        default=None,
        description="Whether the chat template begins the model's turn. Default: true, unless "
        "`continue_final_message` is true.",
    )
    continue_final_message: Flag | None = Field(
        default=None,
        description="Whether the model continues the last message, which is left open for that. Default: false.",
    )
    max_completion_tokens: Count | None = Field(
        default=None, description="The newer name of `max_tokens`, which it overrides."
    )
    logprobs: Flag | None = Field(
        default=None, description="Whether to return how probable each token of the text was. Default: false."
    )
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS, strict=True)] | None = Field(
        default=None, description="How many of the likeliest tokens to return in each place; only with `logprobs`."
    )

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        given = self.chat_template_kwargs or {}
        if reserved := sorted(RESERVED & given.keys()):
            raise PydanticCustomError(
                "together", "Invalid 'chat_template_kwargs': {key} is no variable that a request can set there.",
                {"name": "chat_template_kwargs", "key": repr(reserved[0])},
            )  # fmt: skip
        if self.enable_thinking not in (None, given.get("enable_thinking", self.enable_thinking)):
            raise PydanticCustomError(
                "together", "'enable_thinking' is not what 'chat_template_kwargs' says.", {"name": "enable_thinking"}
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise PydanticCustomError(
                "together",
                "'continue_final_message' and 'add_generation_prompt' can't both be true: a message is continued, or "
                "a new one begins.",
                {"name": "continue_final_message"},
            )
        return self

    @property
    def template_variables(self) -> dict[str, Any]:
        """The variables of the chat template, without the messages."""
        given = dict(self.chat_template_kwargs or {})
        if self.enable_thinking is not None:
            given["enable_thinking"] = self.enable_thinking
        begins = self.add_generation_prompt
        given["add_generation_prompt"] = not self.continue_final_message if begins is None else begins
        if self.continue_final_message:
            given["continue_final_message"] = True
        return given

    @model_validator(mode="after")
    def _check_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError(
                "together", "'top_logprobs' is only allowed when 'logprobs' is true.", {"name": "top_logprobs"}
            )
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens that may be generated; if both fields are given, the newer one counts."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def likeliest_count(self) -> int | None:
        """How many of the likeliest tokens to return for each token; None returns no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(GenerationBody):
    """The body of `POST /v1/completions`."""

    prompt: Text | Several[Text] | Tokens | Several[Tokens] = Field(
        description="The text to continue, or its token ids; or a list of several of these."
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS, strict=True)] | None = Field(
        default=None,
        description="Return how probable each token was, and this many of the likeliest ones in its place. "
        "Default: no logprobs.",
    )

    @property
    def limit(self) -> int | None:
        """The most tokens that may be generated."""
        return self.max_tokens

    @property
    def likeliest_count(self) -> int | None:
        """How many of the likeliest tokens to return for each token; None returns no logprobs."""
        return self.logprobs

    @property
    def count(self) -> int:
        """How many sequences to generate."""
        return (self.n or 1) * len(self.prompts)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


FIELDS = frozenset(
    name for kind in (TextPart, Message, StreamOptions, ChatBody, CompletionBody) for name in kind.model_fields
)
