"""The description of the API in OpenAPI's form (https://spec.openapis.org/oas/v3.1.0), served at /openapi.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mlxk2 import __version__

JSON = dict[str, Any]
_REFERENCE = "#/components/schemas/{model}"


class Operation(NamedTuple):
    """What a method of a path accepts and returns.

    `statuses` are those of its own errors. `chunk` is an object of its stream, if it can have one. `unready` says what
    a status of 503 with the result means, where there is such a response.
    """

    method: str
    path: str
    summary: str
    result: type[BaseModel]
    statuses: tuple[int, ...] = ()
    body: type[BaseModel] | None = None
    chunk: type[BaseModel] | None = None
    needs_key: bool = True
    unready: str = ""


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


def describe(operations: Iterable[tuple[Operation, type[BaseModel]]], *, has_key: bool) -> JSON:
    """Return the OpenAPI document of a server with or without a key; each operation has the type of its errors."""
    operations = list(operations)
    types = {
        kind: None
        for operation, error in operations
        for kind in (error, operation.body, operation.result, operation.chunk)
        if kind is not None
    }
    # Types of different APIs may have the same name.
    references, schemas = models_json_schema([(kind, "validation") for kind in types], ref_template=_REFERENCE)
    paths: dict[str, JSON] = {}
    for operation, error in operations:
        contents = {
            kind: {"application/json": {"schema": references[kind, "validation"]}}
            for kind in (error, operation.body, operation.result)
            if kind is not None
        }
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation, error, contents, has_key)
    components: JSON = {"schemas": schemas["$defs"]}
    if has_key:
        components["securitySchemes"] = _KEYS
    info = {"title": "mlxk2", "version": __version__, "summary": "OpenAI's API, served by models on this machine."}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _describe(
    operation: Operation, error: type[BaseModel], contents: Mapping[type[BaseModel], JSON], has_key: bool
) -> JSON:
    needs_key = has_key and operation.needs_key
    success: JSON = {"description": "Success.", "content": dict(contents[operation.result])}
    if operation.chunk is not None:
        # Some readers would take a schema for that of the whole stream, others for that of each event.
        success["content"]["text/event-stream"] = {"schema": {}}
        success["description"] = (
            f"The whole response; with `stream`, events `data: ` with a {operation.chunk.__name__} each, or an Error "
            "at the end, and then `data: [DONE]`."
        )
    responses: JSON = {"200": success}
    for status in sorted({*operation.statuses, *_COMMON_STATUSES, *([401] if needs_key else [])}):
        responses[str(status)] = {"description": _ERRORS[status], "content": contents[error]}
        if status in _HEADERS:
            responses[str(status)]["headers"] = {_HEADERS[status]: {"schema": {"type": "string"}}}
    described: JSON = {"summary": operation.summary, "responses": responses}
    if operation.unready:
        bodies = [contents[kind]["application/json"]["schema"] for kind in (operation.result, error)]
        responses["503"]["description"] = operation.unready
        responses["503"]["content"] = {"application/json": {"schema": {"anyOf": bodies}}}
    if needs_key:
        described["security"] = [{name: []} for name in _KEYS]
    if names := re.findall(r"{(\w+)}", operation.path):
        schema = {"type": "string"}
        described["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": contents[operation.body]}
    return described
