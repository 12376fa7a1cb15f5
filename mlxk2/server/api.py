"""The definition of an API: its paths, its endpoints, their description, and the form of its errors.

The description has OpenAPI's form (https://spec.openapis.org/oas/v3.1.0); the server sends it at /openapi.json.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pydantic
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response
from starlette.routing import BaseRoute

from mlxk2 import __version__
from mlxk2.errors import MlxkError
from mlxk2.server.http.access import plain_path
from mlxk2.server.http.refusals import Refusal

JSON = dict[str, Any]
_REFERENCE = "#/components/schemas/{model}"

_ERRORS: Mapping[int, str] = {
    400: "An invalid value, a prompt that is too long, a model that can't run here, or bytes that are not HTTP.",
    401: "The key is missing or wrong.",
    403: "A Host or an Origin that is not this server's.",
    404: "No such model.",
    405: "The path exists, but not for this method.",
    413: "The body is too large.",
    415: "The body has a Content-Encoding that is not supported.",
    431: "The head of the request is too large.",
    500: "The generation failed, or the server has an internal error.",
    503: "The server is busy or shutting down.",
}
_COMMON_STATUSES = (400, 403, 405, 413, 415, 431, 500, 503)
_HEADERS: Mapping[int, str] = {401: "WWW-Authenticate", 405: "Allow", 415: "Accept-Encoding", 503: "Retry-After"}
_KEYS = {
    "key": {"type": "http", "scheme": "bearer", "description": "The key that the server was started with."},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "The same key."},
}

# The errors that an API renders in its own form.
RequestError = MlxkError | pydantic.ValidationError | Refusal


class Operation(NamedTuple):
    """The description of one method of a path: its body, its result and its errors.

    `statuses` are the statuses of errors that only some operations have. `chunk` is the type of the objects in its
    stream, if it has one. `unready` describes the status 503 with a result, if the operation has such a response.
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


@dataclass(frozen=True)
class Api:
    """An API of the server.

    The API owns `paths` and all paths below them, also those without an endpoint. `operations` describe its `routes`.
    `stream_note` describes the events of a stream; `{chunk}` in it is replaced by their type. `error` is the type of
    the body that `render` writes.
    """

    paths: tuple[str, ...]
    routes: Sequence[BaseRoute]
    operations: Sequence[Operation]
    stream_note: str
    error: type[BaseModel]
    render: Callable[[RequestError], Response]


def render_error(apis: Sequence[Api], path: str, error: RequestError) -> Response:
    """Return the response for an error in the form of the API that owns the path, or of the first API."""
    return (_owner(apis, path) or apis[0]).render(error)


def list_paths(apis: Sequence[Api], others: Sequence[str], path: str) -> str:
    """Return the methods and paths of the API that owns a path, or of all APIs and `others` if none owns it."""
    owner = _owner(apis, path)
    owned = [operation for api in ([owner] if owner else apis) for operation in api.operations]
    found = [f"{operation.method.upper()} {operation.path}" for operation in owned]
    return ", ".join(found if owner else [*others, *found])


def _owner(apis: Sequence[Api], path: str) -> Api | None:
    """Return the API that owns a path; of several, the one with the longest prefix of it."""
    path = plain_path(path) + "/"
    owned = [(len(prefix), api) for api in apis for prefix in api.paths if path.startswith(prefix + "/")]
    return max(owned, key=lambda each: each[0])[1] if owned else None


def describe(apis: Sequence[Api], others: Sequence[Operation], *, has_key: bool) -> JSON:
    """Return the OpenAPI document of a server with or without a key; `others` are operations outside the APIs."""
    operations = [(operation, apis[0]) for operation in others]
    operations += [(operation, api) for api in apis for operation in api.operations]
    types = {
        kind: None
        for operation, api in operations
        for kind in (api.error, operation.body, operation.result, operation.chunk)
        if kind is not None
    }
    # Types of different APIs can have the same name.
    references, schemas = models_json_schema([(kind, "validation") for kind in types], ref_template=_REFERENCE)
    paths: dict[str, JSON] = {}
    for operation, api in operations:
        contents = {
            kind: {"application/json": {"schema": references[kind, "validation"]}}
            for kind in (api.error, operation.body, operation.result)
            if kind is not None
        }
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation, api, contents, has_key)
    components: JSON = {"schemas": schemas["$defs"]}
    if has_key:
        components["securitySchemes"] = _KEYS
    info = {"title": "mlxk2", "version": __version__, "summary": "OpenAI's API, served by models on this machine."}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _describe(operation: Operation, api: Api, contents: Mapping[type[BaseModel], JSON], has_key: bool) -> JSON:
    needs_key = has_key and operation.needs_key
    success: JSON = {"description": "Success.", "content": dict(contents[operation.result])}
    if operation.chunk is not None:
        # Leave the schema empty: some programs would apply it to the whole stream, others to each event.
        success["content"]["text/event-stream"] = {"schema": {}}
        success["description"] = api.stream_note.format(chunk=operation.chunk.__name__)
    responses: JSON = {"200": success}
    for status in sorted({*operation.statuses, *_COMMON_STATUSES, *([401] if needs_key else [])}):
        responses[str(status)] = {"description": _ERRORS[status], "content": contents[api.error]}
        if status in _HEADERS:
            responses[str(status)]["headers"] = {_HEADERS[status]: {"schema": {"type": "string"}}}
    described: JSON = {"summary": operation.summary, "responses": responses}
    if operation.unready:
        bodies = [contents[kind]["application/json"]["schema"] for kind in (operation.result, api.error)]
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
