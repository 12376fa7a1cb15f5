"""`/v1/chat/completions`: a message that continues a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from mlxk2.runner.events import Channel
from mlxk2.runner.output.logprobs import TokenLogprob as RunnerLogprob
from mlxk2.runner.prompt.prompter import Message as PromptMessage
from mlxk2.runner.prompt.prompter import Prompter
from mlxk2.runner.request import GenerationRequest
from mlxk2.server.api import Operation
from mlxk2.server.app import respond
from mlxk2.server.openai.fields import (
    MAX_LOGPROBS,
    Count,
    Fields,
    Flag,
    GenerationBody,
    Several,
    Text,
    refuse_unsupported,
)
from mlxk2.server.openai.sse import (
    JSON,
    MIN_LOGPROB,
    FinishReason,
    LazyList,
    Renderer,
    SequenceOutput,
    Timings,
    Usage,
    name_of,
)
from mlxk2.server.preparing import PromptModel

MAX_MESSAGES = 65_536  # Far more than any conversation has; each message takes time.
# Arguments of transformers' `apply_chat_template` that are not template variables, and variables with their own field.
RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "context",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


class TextPart(Fields):
    """A part of a message that is a text. Other kinds of parts are refused; the server never fetches anything."""

    type: Literal["text"] = Field(description="The kind of the part.")
    text: Text = Field(description="The text.")


# The types alone can't express this rule in the description of the API.
_CONTENT_REQUIRED: JsonDict = {
    "if": {"properties": {"role": {"const": "assistant"}}},
    "else": {"required": ["content"], "properties": {"content": {"not": {"type": "null"}}}},
}


class Message(Fields):
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
        """The content, with its parts joined."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


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
                "together",
                "Invalid 'chat_template_kwargs': a request can't set {key} there.",
                {"name": "chat_template_kwargs", "key": repr(reserved[0])},
            )
        if self.enable_thinking not in (None, given.get("enable_thinking", self.enable_thinking)):
            raise PydanticCustomError(
                "together", "'enable_thinking' differs from 'chat_template_kwargs'.", {"name": "enable_thinking"}
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
        """The most tokens that may be generated; if both fields are set, the newer one applies."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def likeliest_count(self) -> int | None:
        """The number of likeliest tokens to return for each token; None means no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def requests(self, model: PromptModel, default_limit: int | None) -> Sequence[GenerationRequest]:
        """Return one request for each of the `n` completions of the conversation."""
        messages: list[PromptMessage] = []
        for message in self.messages:
            # Chat templates use the older name of the role.
            role = "system" if message.role == "developer" else message.role
            turn: PromptMessage = {"role": role, "content": message.text}
            messages.append(turn if message.name is None else {**turn, "name": message.name})
        prompter = Prompter(model.tokenizer, model.vocabulary, context=model.context_length)
        prompt = prompter.chat(messages, self.template_variables)
        continues = bool(self.continue_final_message)
        requests = self.continue_prompt(prompt, model, default_limit, continues=continues)
        return self.limit_logprobs(requests, model.context_length)


class TopLogprob(BaseModel):
    """A likely token, with the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The chosen token, and the likeliest tokens at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The tokens of the content."""

    content: list[TokenLogprob]
    refusal: None


class ChatMessage(BaseModel):
    """The model's text, and its reasoning before the text."""

    role: Literal["assistant"]
    content: str
    refusal: None
    reasoning_content: str = ""


class ChatChoice(BaseModel):
    """One message."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The response to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    """The next text of a message."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    reasoning_content: str = ""


class ChatChunkChoice(BaseModel):
    """The next text of one message."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(BaseModel):
    """An object in the stream of a chat completion.

    If the request asks for `usage`, the last object has it, and `timings` if there is only one completion.
    """

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    timings: Timings | None = None


class ChatRenderer(Renderer):
    """Renders `/v1/chat/completions`: messages, with their reasoning in a separate field."""

    id_prefix = "chatcmpl-"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    prompt_field = "messages"

    def choice(self, number: int, output: SequenceOutput) -> JSON:
        """Return the choice with the whole message."""
        message: JSON = {"role": "assistant", "content": output.texts["content"], "refusal": None}
        if output.texts["reasoning"]:
            message["reasoning_content"] = output.texts["reasoning"]
        return {
            "index": number,
            "message": message,
            "logprobs": self._render_logprobs(output.logprobs, lazy=True),
            "finish_reason": output.finish_reason,
        }

    def opening(self, number: int) -> JSON:
        """Return the choice with the role."""
        return self._choice(number, {"role": "assistant", "content": ""})

    def delta(self, number: int, channel: Channel, text: str, logprobs: Sequence[RunnerLogprob]) -> JSON:
        """Return the choice for the next text of a message."""
        name = "content" if channel == "content" else "reasoning_content"
        return self._choice(number, {name: text}, self._render_logprobs(logprobs))

    def ending(self, number: int, finish_reason: str) -> JSON:
        """Return the choice that ends a message."""
        return self._choice(number, {}, finish_reason=finish_reason)

    def heartbeat(self, number: int) -> JSON:
        """Return a choice with an empty delta."""
        return self._choice(number, {})

    def _choice(self, number: int, delta: JSON, logprobs: JSON | None = None, finish_reason: str | None = None) -> JSON:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def _render_logprobs(self, entries: Sequence[RunnerLogprob], *, lazy: bool = False) -> JSON | None:
        if not self.has_logprobs:
            return None
        content = LazyList(self._render_entry, entries) if lazy else [self._render_entry(entry) for entry in entries]
        return {"content": content, "refusal": None}

    def _render_entry(self, entry: RunnerLogprob) -> JSON:
        top = [self._render_token(token, logprob) for token, logprob in entry.top]
        return {**self._render_token(entry.token, entry.logprob), "top_logprobs": top}

    def _render_token(self, token: int, logprob: float) -> JSON:
        raw = self.bytes_of(token)
        return {"token": name_of(raw), "logprob": max(MIN_LOGPROB, logprob), "bytes": list(raw)}


router = APIRouter()


# Some clients omit `/v1`.
@router.post("/v1/chat/completions")
@router.post("/chat/completions", include_in_schema=False)
async def create_chat_completion(request: Request) -> Response:
    """Continue a conversation."""
    body = ChatBody.model_validate_json(await request.body())
    return await respond(request, body, ChatRenderer(body))


OPERATIONS = (
    Operation(
        "post",
        "/v1/chat/completions",
        "Continue a conversation",
        ChatCompletion,
        statuses=(404,),
        body=ChatBody,
        chunk=ChatCompletionChunk,
    ),
)
