"""The description of the API in OpenAPI's form, served at /openapi.json."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mlxk2.server.protocol import ChatBody, CompletionBody

_REFERENCE = "#/components/schemas/{model}"


class ErrorDetail(BaseModel):
    """What was wrong."""

    message: str
    type: str
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
    """A model that can run here."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int


class Models(BaseModel):
    """All models that can run here."""

    object: Literal["list"]
    data: list[Model]


class PromptDetails(BaseModel):
    """Of the prompt's tokens, those that were not computed again."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str
    refusal: None
    reasoning_content: str | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """The whole answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """The continuations of a prompt."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    meanings = {
        400: "A value that can't be right, or a prompt that does not fit.",
        401: "The key is missing or wrong.",
        403: "A Host or Origin that is not this server's.",
        404: "No such model.",
        413: "The body is too large.",
        500: "Generating failed.",
        503: "The queue is full, or the server is shutting down.",
    }
    return {status: {"model": Error, "description": meanings[status]} for status in statuses}


def _route(summary: str, result: type[BaseModel], *errors: int, body: type[BaseModel] | None = None) -> dict[str, Any]:
    route: dict[str, Any] = {"summary": summary, "responses": {200: {"model": result}, **_errors(401, 403, *errors)}}
    if body is not None:
        schema = {"$ref": _REFERENCE.format(model=body.__name__)}
        content = {"application/json": {"schema": schema}}
        route["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
        route["responses"][200]["content"] = {"text/event-stream": {}}
    return route


HEALTH = _route("The state of the server", Health)
HEALTH["responses"][503] = {"model": Health, "description": "The first model is being loaded."}
MODELS = _route("The models that can run here", Models)
MODEL = _route("One model", Model, 404)
CHAT = _route("Answer a conversation", ChatCompletion, 400, 404, 413, 500, 503, body=ChatBody)
COMPLETIONS = _route("Continue a text", Completion, 400, 404, 413, 500, 503, body=CompletionBody)


def description(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, with the schemas of the bodies that the routes read themselves."""
    if app.openapi_schema is None:
        app.openapi_schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, schemas = models_json_schema(
            [(ChatBody, "validation"), (CompletionBody, "validation")], ref_template=_REFERENCE
        )
        app.openapi_schema["components"]["schemas"].update(schemas["$defs"])
    return app.openapi_schema
