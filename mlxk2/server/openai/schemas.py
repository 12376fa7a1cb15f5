"""The types of what the server answers, as its description tells them; `shapes.py` makes them from chunks.

What has a default here may be left out.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What was wrong, and in which field if it was one."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str | None


class Error(BaseModel):
    """OpenAI's error body."""

    error: ErrorDetail


class Health(BaseModel):
    """How the server is."""

    status: Literal["ok", "loading"]
    model: str | None
    loading: str | None
    active: int
    queued: int
    version: str


class Model(BaseModel):
    """A model that can run here; `context_length` in tokens, null where its files do not say; `created` in seconds
    since 1970.
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
    """How many of the prompt's tokens were not computed again."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


FinishReason = Literal["stop", "length"]


class TopLogprob(BaseModel):
    """A token that was likely, with the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The token that was chosen, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The tokens that the content is made of."""

    content: list[TokenLogprob]
    refusal: None


class ChatMessage(BaseModel):
    """What the model said, and what it thought before."""

    role: Literal["assistant"]
    content: str
    refusal: None
    reasoning_content: str = ""


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The whole answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    """The next part of a message."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    reasoning_content: str = ""


class ChatChunkChoice(BaseModel):
    """The next part of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(BaseModel):
    """An object of the stream of a chat; `usage` is there where it was asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(BaseModel):
    """The tokens that the text is made of, in lists of the same length; offsets are in characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class Completion(BaseModel):
    """The continuations of a prompt."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(CompletionChoice):
    """The next part of one continuation."""

    finish_reason: FinishReason | None  # type: ignore[assignment] # null until the end


class CompletionChunk(BaseModel):
    """An object of the stream of a continuation; `usage` is there where it was asked for."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None
