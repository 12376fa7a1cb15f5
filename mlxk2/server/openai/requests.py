"""What clients send: OpenAI's request bodies as types, checked before anything else happens.

Null means "not given", and so does leaving a field out. Fields that OpenAI does not define are ignored; those that it
defines and this server does not have yet are refused by name (`unsupported.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from mlxk2.server.openai.unsupported import refuse_unsupported

_MOST = (1 << 31) - 1
Text = Annotated[str, Field(strict=True)]
Some = Annotated[str, StringConstraints(min_length=1, strict=True)]
# Looking for long ones takes time for each character of theirs.
Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000, strict=True)]
Token = Annotated[int, Field(ge=0, le=_MOST, strict=True)]
Seed = Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1, strict=True)]
Count = Annotated[int, Field(ge=1, le=_MOST, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Item = TypeVar("Item")
# Of many faults only the first is told: the others need not be found.
Several = Annotated[list[Item], Field(min_length=1, fail_fast=True)]
Tokens = Several[Token]
MOST_LOGPROBS = 20
MOST_STOPS = 16
MOST_ANSWERS = 128
# Far more than any conversation has: to look at each takes its time.
MOST_MESSAGES = 65_536
# Arguments of transformers' `apply_chat_template` that are no variables of a template, and what has a field of its own.
RESERVED = frozenset({
    "add_generation_prompt", "chat_template", "context", "continue_final_message", "conversation", "documents",
    "max_length", "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize",
    "tokenizer_kwargs", "tools", "truncation",
})  # fmt: skip
# Each of the answers looks at each of them.
MOST_BIASES = 10_000


def _number(low: float, high: float, default: float, what: str) -> Any:
    description = f"{what} By default {default:g}."
    return Field(default=None, ge=low, le=high, strict=True, allow_inf_nan=False, description=description)


class _Fields(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class TextPart(_Fields):
    """A part of a message; only text is understood, and nothing is ever fetched."""

    type: Literal["text"] = Field(description="What the part is.")
    text: Text = Field(description="Its text.")


# Told in the description too, where types alone can't say it.
_CONTENT_REQUIRED: JsonDict = {
    "if": {"properties": {"role": {"const": "assistant"}}},
    "else": {"required": ["content"], "properties": {"content": {"not": {"type": "null"}}}},
}


class Message(_Fields):
    """One turn of a conversation."""

    model_config = ConfigDict(json_schema_extra=_CONTENT_REQUIRED)

    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="Who speaks; `developer` is the newer name of `system`."
    )
    content: Text | Several[TextPart] | None = Field(
        default=None, description="What is said, as text or as parts, which are joined. An assistant's may be null."
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
    """What else a stream tells."""

    include_usage: Flag | None = Field(
        default=None, description="Whether the stream ends with a chunk that tells the usage. By default not."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_unsupported(self.model_extra or {})
        return self


class GenerationBody(_Fields):
    """What chat and plain completions have in common."""

    model: Some | None = Field(
        default=None,
        description="The model: its name, `name@hash`, or a part of its name that only one has. By default the one "
        "that the server was started with, else the one in memory.",
    )
    max_tokens: Count | None = Field(
        default=None,
        description="The most tokens an answer may have. By default what the server was started with "
        "(`--max-tokens`), else half of the model's context, or 4,096 where its files name none; never more than the "
        "context has left.",
    )
    temperature: float | None = _number(
        0, 2, 1, "How freely tokens are chosen: 0 takes the likeliest, 1 follows the model's probabilities."
    )
    top_p: float | None = _number(0, 1, 1, "Choose among the likeliest tokens that together are this probable.")
    top_k: Annotated[int, Field(ge=0, le=_MOST, strict=True)] | None = Field(
        default=None, description="Choose among that many of the likeliest tokens; 0 means all. By default 0."
    )
    min_p: float | None = _number(0, 1, 0, "Leave out tokens less probable than this part of the likeliest one's.")
    seed: Seed | None = Field(
        default=None, description="The same seed gives the same answer. By default every answer is another one."
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS, fail_fast=True)] | None = Field(
        default=None, description="One or several texts that end the answer and are no part of it."
    )
    stream: Flag | None = Field(
        default=None, description="Whether to send the answer in parts while it is generated. By default not."
    )
    stream_options: StreamOptions | None = Field(
        default=None, description="What else a stream tells; only with `stream`."
    )
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS, strict=True)] | None = Field(
        default=None, description="How many answers to give to each prompt, at most `--max-concurrent`. By default 1."
    )
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, strict=True)]] | None = Field(
        default=None, max_length=MOST_BIASES,
        description="What to add to the logits of tokens, by token id: -100 bans one, 100 forces it.",
    )
    presence_penalty: float | None = _number(-2, 2, 0, "Taken off the logits of tokens that the answer has already.")
    frequency_penalty: float | None = _number(-2, 2, 0, "The same, once for each time that the answer has the token.")
    repetition_penalty: float | None = _number(
        0.01, 100, 1, "Above 1, makes the last 64 tokens of prompt and answer less likely to come again."
    )
    user: Text | None = Field(default=None, description="Who asks; it changes nothing.")

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
    def includes_usage(self) -> bool:
        """Whether the stream is to end with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatBody(GenerationBody):
    """The body of `POST /v1/chat/completions`."""

    messages: Several[Message] = Field(max_length=MOST_MESSAGES, description="The conversation so far.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Variables for the model's chat template, by name."
    )
    enable_thinking: Flag | None = Field(
        default=None,
        description="Whether the model thinks before it answers: the variable of this name, for chat templates that "
        "know it. By default what the template says.",
    )
    add_generation_prompt: Flag | None = Field(
        default=None,
        description="Whether the chat template begins the model's turn. By default it does, unless "
        "`continue_final_message` is true.",
    )
    continue_final_message: Flag | None = Field(
        default=None,
        description="Whether the answer continues the last message, which is left open for that. By default not.",
    )
    max_completion_tokens: Count | None = Field(
        default=None, description="The newer name of `max_tokens`, which it overrides."
    )
    logprobs: Flag | None = Field(
        default=None, description="Whether to tell how probable each token of the answer was. By default not."
    )
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS, strict=True)] | None = Field(
        default=None, description="How many of the likeliest tokens to tell in each place; only with `logprobs`."
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
        """What the chat template is given beside the messages."""
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
        """The most tokens an answer may have; the newer name counts where both are given."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """How many alternatives to report beside each token; None reports nothing."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(GenerationBody):
    """The body of `POST /v1/completions`."""

    prompt: Text | Several[Text] | Tokens | Several[Tokens] = Field(
        description="The text to continue, or its token ids; or a list of several of these."
    )
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS, strict=True)] | None = Field(
        default=None,
        description="Tell how probable each token was, and that many of the likeliest ones in its place. "
        "By default nothing.",
    )

    @property
    def limit(self) -> int | None:
        """The most tokens a continuation may have."""
        return self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """How many alternatives to report beside each token; None reports nothing."""
        return self.logprobs

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
