"""The types of the responses, for the description of the API; `rendering.py` makes the objects from events.

A field that has a default here may be absent.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What was wrong, and in which field of the request, if it was a field."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str | None


class Error(BaseModel):
    """OpenAI's error body."""

    error: ErrorDetail


class Health(BaseModel):
    """The state of the server."""

    status: Literal["ok", "loading"]
    model: str | None
    loading: str | None
    active: int
    queued: int
    version: str


class Model(BaseModel):
    """A model that can run here; `created` in seconds since 1970, `context_length` in tokens, null if its files do not
    say it.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int | None


class Models(BaseModel):
    """All models that can run here."""

    object: Literal["list"]
    data: list[Model]


class PromptTokensDetails(BaseModel):
    """How many tokens of the prompt came from the prompt cache."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


FinishReason = Literal["stop", "length"]


class TopLogprob(BaseModel):
    """A likely token, with the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The token that was chosen, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The tokens of the content."""

    content: list[TokenLogprob]
    refusal: None


class ChatMessage(BaseModel):
    """The text of the model, and its reasoning before that."""

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
    """An object of the stream of a chat; it has `usage` if the request asks for it."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(BaseModel):
    """The tokens of the text, in lists of the same length; offsets are in characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class Completion(BaseModel):
    """The texts that continue the prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(CompletionChoice):
    """The next part of one text."""

    finish_reason: FinishReason | None  # type: ignore[assignment] # null until the end


class CompletionChunk(BaseModel):
    """An object of the stream of a completion; it has `usage` if the request asks for it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None
