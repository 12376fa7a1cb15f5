"""The description of the API in OpenAPI's form (https://spec.openapis.org/oas/v3.1.0), served at /openapi.json."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mlxk2 import __version__
from mlxk2.server.openai.requests import ChatBody, CompletionBody
from mlxk2.server.openai.schemas import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    Error,
    Health,
    Model,
    Models,
)

JSON = dict[str, Any]
_REFERENCE = "#/components/schemas/{model}"


class _Operation(NamedTuple):
    """What a method of a path accepts and returns; `statuses` are those of its own errors."""

    method: str
    path: str
    summary: str
    result: type[BaseModel]
    statuses: tuple[int, ...] = ()
    body: type[BaseModel] | None = None
    chunk: type[BaseModel] | None = None


_OPERATIONS = (
    _Operation("get", "/health", "The state of the server", Health),
    _Operation("get", "/v1/models", "The models that can run here", Models),
    _Operation("get", "/v1/models/{model}", "One of these models", Model, (404,)),
    _Operation(
        "post", "/v1/chat/completions", "Continue a conversation",
        ChatCompletion, (404,), ChatBody, ChatCompletionChunk,
    ),
    _Operation(
        "post", "/v1/completions", "Continue a text",
        Completion, (404,), CompletionBody, CompletionChunk,
    ),
)  # fmt: skip

_ERRORS: Mapping[int, str] = {
    400: "A value that can't be right, a prompt that does not fit, a model that can't run here, or no HTTP.",
    401: "The key is missing or wrong.",
    403: "A Host or an Origin that is not this server's.",
    404: "No such model.",
    405: "The path exists, but not for this method.",
    413: "The body is too large.",
    415: "The body has a Content-Encoding that is not supported.",
    431: "The head of the request is too large.",
    500: "The generation failed, or the server made a mistake.",
    503: "The server is busy or shutting down.",
}
_COMMON_STATUSES = (400, 403, 405, 413, 415, 431, 500, 503)
_HEADERS: Mapping[int, str] = {401: "WWW-Authenticate", 405: "Allow", 415: "Accept-Encoding", 503: "Retry-After"}
_KEYS = {
    "key": {"type": "http", "scheme": "bearer", "description": "The key that the server was started with."},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "The same key."},
}


@cache
def describe(*, has_key: bool) -> JSON:
    """Return the OpenAPI document of a server with or without a key."""
    paths: dict[str, JSON] = {}
    types: list[type[BaseModel]] = [Error]
    for operation in _OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe_operation(operation, has_key)
        types += filter(None, (operation.body, operation.result, operation.chunk))
    _, schemas = models_json_schema([(each, "validation") for each in types], ref_template=_REFERENCE)
    components: JSON = {"schemas": schemas["$defs"]}
    if has_key:
        components["securitySchemes"] = _KEYS
    info = {"title": "mlxk2", "version": __version__, "summary": "OpenAI's API, served by models on this machine."}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _describe_operation(operation: _Operation, has_key: bool) -> JSON:
    is_open = operation.result is Health
    success: JSON = {"description": "Success.", "content": _json(operation.result)}
    if operation.chunk is not None:
        # Some readers would take a schema for that of the whole stream, others for that of each event.
        success["content"]["text/event-stream"] = {"schema": {}}
        success["description"] = (
            f"The whole response; with `stream`, events `data: ` with a {operation.chunk.__name__} each, or an Error "
            "at the end, and then `data: [DONE]`."
        )
    responses: JSON = {"200": success}
    for status in sorted({*operation.statuses, *_COMMON_STATUSES, *([401] if has_key and not is_open else [])}):
        responses[str(status)] = {"description": _ERRORS[status], "content": _json(Error)}
        if status in _HEADERS:
            responses[str(status)]["headers"] = {_HEADERS[status]: {"schema": {"type": "string"}}}
    described: JSON = {"summary": operation.summary, "responses": responses}
    if is_open:
        health = {"anyOf": [_reference(Health), _reference(Error)]}
        responses["503"]["description"] = "The first model is being loaded, or the server is busy or shutting down."
        responses["503"]["content"] = {"application/json": {"schema": health}}
    elif has_key:
        described["security"] = [{name: []} for name in _KEYS]
    if "{model}" in operation.path:
        schema = {"type": "string"}
        described["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": schema}]
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(operation.body)}
    return described


def _json(body: type[BaseModel]) -> JSON:
    return {"application/json": {"schema": _reference(body)}}


def _reference(body: type[BaseModel]) -> JSON:
    return {"$ref": _REFERENCE.format(model=body.__name__)}
