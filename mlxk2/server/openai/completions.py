"""`/v1/completions`: texts that continue prompts."""

from __future__ import annotations

import codecs
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from mlxk2.runner.events import Channel
from mlxk2.runner.output.logprobs import TokenLogprob
from mlxk2.runner.prompt.prompter import Prompt, Prompter
from mlxk2.runner.request import GenerationRequest
from mlxk2.server.api import Operation
from mlxk2.server.app import respond
from mlxk2.server.openai.fields import MAX_LOGPROBS, GenerationBody, Several, Text, Tokens
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
    def likeliest_count(self) -> int | None:
        """The number of likeliest tokens to return for each token; None means no logprobs."""
        return self.logprobs

    @property
    def count(self) -> int:
        """The number of sequences to generate."""
        return (self.n or 1) * len(self.prompts)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    def requests(self, model: PromptModel, default_limit: int | None) -> Sequence[GenerationRequest]:
        """Return one request for each of the `n` completions of every prompt, prompt by prompt."""
        prompter = Prompter(model.tokenizer, model.vocabulary, context=model.context_length)
        requests: list[GenerationRequest] = []
        for given in self.prompts:
            prompt = prompter.completion(given) if isinstance(given, str) else Prompt(tuple(given), thinking=False)
            requests += self.continue_prompt(prompt, model, default_limit, plain=True)
        return self.limit_logprobs(requests, model.context_length)


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

    finish_reason: FinishReason | None  # type: ignore[assignment] # It is null until the end.


class CompletionChunk(BaseModel):
    """An object in the stream of a completion.

    If the request asks for `usage`, the last object has it, and `timings` if there is only one completion.
    """

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None
    timings: Timings | None = None


class CompletionRenderer(Renderer):
    """Renders `/v1/completions`: plain text, and logprobs in the older form."""

    id_prefix = "cmpl-"
    object = "text_completion"
    chunk_object = "text_completion"
    prompt_field = "prompt"

    def __init__(self, body: GenerationBody) -> None:
        super().__init__(body)
        self._offsets: defaultdict[int, _Offsets] = defaultdict(_Offsets)

    def choice(self, number: int, output: SequenceOutput) -> JSON:
        """Return the choice with the whole text."""
        text, logprobs = output.texts["content"], output.logprobs
        return self._choice(number, text, logprobs, output.finish_reason, lazy=True)

    def opening(self, number: int) -> None:  # noqa: ARG002 - part of every renderer
        """Return nothing: the text comes first."""
        return

    def delta(self, number: int, channel: Channel, text: str, logprobs: Sequence[TokenLogprob]) -> JSON:  # noqa: ARG002
        """Return the choice for the next text."""
        return self._choice(number, text, logprobs)

    def ending(self, number: int, finish_reason: str) -> JSON:
        """Return the choice that ends a text."""
        return self._choice(number, "", finish_reason=finish_reason)

    def heartbeat(self, number: int) -> JSON:
        """Return a choice with an empty text."""
        return self._choice(number, "")

    def _choice(
        self,
        number: int,
        text: str,
        logprobs: Sequence[TokenLogprob] = (),
        finish_reason: str | None = None,
        *,
        lazy: bool = False,
    ) -> JSON:
        rendered = self._render_logprobs(number, logprobs, lazy) if self.has_logprobs else None
        return {"index": number, "text": text, "logprobs": rendered, "finish_reason": finish_reason}

    def _render_logprobs(self, number: int, entries: Sequence[TokenLogprob], lazy: bool) -> JSON:
        raw = [self.bytes_of(entry.token) for entry in entries]
        return {
            "tokens": [_older_name(name) for name in raw],
            "token_logprobs": [max(MIN_LOGPROB, entry.logprob) for entry in entries],
            "top_logprobs": LazyList(self._render_top, entries) if lazy else [self._render_top(e) for e in entries],
            "text_offset": [self._offsets[number].next(name) for name in raw],
        }

    def _render_top(self, entry: TokenLogprob) -> JSON:
        # The chosen token is always included, even if it is not one of the likeliest.
        pairs = dict([*entry.top, (entry.token, entry.logprob)])
        return {_older_name(self.bytes_of(token)): max(MIN_LOGPROB, logprob) for token, logprob in pairs.items()}


class _Offsets:
    """Computes the position of each token in the text, in characters."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def next(self, raw: bytes) -> int:
        """Add the bytes of the next token, and return its position."""
        begin = self._length
        self._length += len(self._decoder.decode(raw))
        return begin


def _older_name(raw: bytes) -> str:
    name = name_of(raw)
    return f"bytes:{name}" if name.encode() != raw else name


router = APIRouter()


# Some clients omit `/v1`.
@router.post("/v1/completions")
@router.post("/completions", include_in_schema=False)
async def create_completion(request: Request) -> Response:
    """Continue one or more texts."""
    body = CompletionBody.model_validate_json(await request.body())
    return await respond(request, body, CompletionRenderer(body))


OPERATIONS = (
    Operation(
        "post",
        "/v1/completions",
        "Continue a text",
        Completion,
        statuses=(404,),
        body=CompletionBody,
        chunk=CompletionChunk,
    ),
)
