"""A second API with its own paths, bodies, events and errors; it uses no part of OpenAI's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict

from mlxk2.errors import MlxkError
from mlxk2.runner.events import TextDelta
from mlxk2.runner.output.text import Vocabulary
from mlxk2.runner.prompt.prompter import Prompter
from mlxk2.runner.request import GenerationRequest
from mlxk2.server.api import Api, Operation, RequestError
from mlxk2.server.app import respond
from mlxk2.server.generation import Generation
from mlxk2.server.http.refusals import Refusal
from mlxk2.server.preparing import PromptModel


class ToyBody(BaseModel):
    """The body of `POST /toy/say`."""

    model_config = ConfigDict(strict=True)

    text: str
    model: str | None = None
    stream: bool = False

    @property
    def count(self) -> int:
        """Return how many sequences to generate."""
        return 1

    def requests(self, model: PromptModel, default_limit: int | None) -> Sequence[GenerationRequest]:
        """Return the request for a text that continues this one."""
        prompt = Prompter(model.tokenizer, model.vocabulary).completion(self.text)
        return [GenerationRequest(prompt.tokens, default_limit, plain=True)]


class ToyRenderer:
    """Renders what was generated as `said`."""

    prompt_field = count_field = "text"

    def __init__(self) -> None:
        self.vocabulary: Vocabulary | None = None

    async def whole(self, generation: Generation) -> bytes:
        """Return the whole text."""
        said = "".join([text async for text in _texts(generation)])
        return json.dumps({"said": said}).encode()

    async def frames(
        self,
        begun: asyncio.Future[Generation],
        model: str,  # noqa: ARG002 - part of every renderer
        heartbeat: float,  # noqa: ARG002
    ) -> AsyncIterator[bytes]:
        """Yield an event for each piece of text."""
        async for text in _texts(await begun):
            yield f"event: said\ndata: {json.dumps(text)}\n\n".encode()
        yield b"event: end\ndata: null\n\n"


async def _texts(generation: Generation) -> AsyncIterator[str]:
    async for events in generation:
        for _, event in events:
            if isinstance(event, TextDelta):
                yield event.text


class Said(BaseModel):
    """The response of `POST /toy/say`."""

    said: str


class Oops(BaseModel):
    """The form of errors."""

    oops: str
    status: int


def render(error: RequestError) -> Response:
    """Return the response for an error."""
    if isinstance(error, MlxkError):
        return _oops(error.message, error.http_status)
    if isinstance(error, Refusal):
        response = _oops(error.message, error.status)
        response.headers.update(error.headers or {})
        return response
    return _oops(f"{error.error_count()} fields are wrong.", 400)


def _oops(message: str, status: int) -> Response:
    return JSONResponse({"oops": message, "status": status}, status)


_router = APIRouter()


@_router.post("/toy/say")
async def say(request: Request) -> Response:
    """Continue a text."""
    return await respond(request, ToyBody.model_validate_json(await request.body()), ToyRenderer())


# It owns one path below `/v1`, which is OpenAI's.
TOY = Api(
    paths=("/toy", "/v1/toys"),
    routes=_router.routes,
    operations=(Operation("post", "/toy/say", "Continue a text", Said, statuses=(404,), body=ToyBody),),
    stream_note="The whole response; with `stream`, events `said` and an event `end`.",
    error=Oops,
    render=render,
)
