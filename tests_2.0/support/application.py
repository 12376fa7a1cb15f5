"""The server's application in this process, on scripted or tiny models, with HTTP requests that need no socket."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from conftest_runner import ScriptedBackend
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from mlxk2.cache.store import find_cache_dir
from mlxk2.errors import MlxkError
from mlxk2.runner.request import token_budget
from mlxk2.server.api import Api
from mlxk2.server.app import Service, create_app
from mlxk2.server.catalog import Catalog
from mlxk2.server.http.access import Access
from mlxk2.server.messages import ModelKey
from mlxk2.server.openai.api import OPENAI
from mlxk2.server.pool import ModelPool
from mlxk2.server.preparing import MakeRequests, Prepared
from mlxk2.server.scheduler import Limits, Scheduler
from mlxk2.server.worker import Worker
from mlxk2.sleep import NoSleep

MESSAGES = [{"role": "user", "content": "Hello"}]
_KEY = {"Authorization": "Bearer secret"}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
_PAGE = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
# Status and code of every error on the page of the server.
DOCUMENTED = re.findall(r"^\| (\d{3}) \| `(\w+)` \| .+ \| .+ \|$", _PAGE, re.MULTILINE)


class Client(TestClient):
    """Sends requests to the application and checks every response, also errors, against its OpenAPI description."""

    def request(self, method: str, url: Any, **options: Any) -> httpx2.Response:
        """Send a request and check the response."""
        response = super().request(method, url, **options)
        if response.status_code != 499:
            assert_described(super().request("GET", "/openapi.json", headers=_KEY).json(), method, str(url), response)
        return response

    def ask(self, path: str = CHAT, **body: Any) -> Any:
        """Return the response to a request; by default, to a chat of one greeting."""
        response = self.post(path, json=_body(path, body))
        assert response.status_code == 200, response.text
        return response.json()

    def events(self, path: str = CHAT, **body: Any) -> list[Any]:
        """Return the objects of a stream; fail unless it is complete."""
        response = self.post(path, json=_body(path, body) | {"stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        return events_of(response.text)

    def refused(self, path: str = CHAT, *, status: int = 400, **body: Any) -> Mapping[str, Any]:
        """Return the error of a request; fail unless the request is refused."""
        return error_of(self.post(path, json=_body(path, body)), status)


def _body(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    default: dict[str, Any] = {"messages": MESSAGES} if path == CHAT else {"prompt": "Hello"}
    return {**default, **body}


def events_of(text: str) -> list[Any]:
    """Return the objects in the text of a stream."""
    assert text.endswith("data: [DONE]\n\n")
    lines = text.removesuffix("data: [DONE]\n\n").split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: "), parse_constant=_refuse) for line in lines]


def assert_described(document: Any, method: str, url: str, response: httpx2.Response) -> None:
    """Fail unless the description of this request has the response's status and the type of its body."""
    path = re.sub(r"(?<=/v1/models/).*", "{model}", url.removeprefix("http://127.0.0.1:8000"))
    operations = document["paths"].get(path)
    if operations is None:
        return
    operation = operations.get(method.lower(), next(iter(operations.values())))
    content = operation["responses"][str(response.status_code)]["content"]
    schema = content[response.headers["content-type"].split(";")[0]]["schema"]
    if not schema:
        chunk = {CHAT: "ChatCompletionChunk", TEXT: "CompletionChunk"}[path]
        for event in events_of(response.text):
            validate(document, {"$ref": f"#/components/schemas/{'Error' if 'error' in event else chunk}"}, event)
    else:
        validate(document, schema, response.json())


def validate(document: Any, schema: Any, value: Any) -> None:
    """Fail unless a value conforms to a schema of the description and has no further keys."""
    closed = {
        name: kind | ({"additionalProperties": False} if "properties" in kind else {})
        for name, kind in document["components"]["schemas"].items()
    }
    Draft202012Validator({**schema, "components": {"schemas": closed}}).validate(value)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def error_of(response: httpx2.Response, status: int) -> Mapping[str, Any]:
    """Return the error of a response; fail unless it has this status and OpenAI's form, and is documented."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (key,), (error,) = response.json().keys(), response.json().values()
    assert key == "error"
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"]
    assert (str(status), error["code"]) in DOCUMENTED
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    return dict(error)


class ScriptedPreparing:
    """Prepares prompts with the tokenizer of the scripted model that is in memory or comes next."""

    def __init__(self, models: Sequence[ScriptedBackend], delay: float = 0.0) -> None:
        self.models = list(models) or [ScriptedBackend(lambda _: [])]
        self.delay = delay

    async def prepare(self, key: ModelKey, make: MakeRequests, client: Hashable = None) -> Prepared:  # noqa: ARG002
        """Return the requests."""
        await asyncio.sleep(self.delay)
        model = self.models[0]
        requests = make(model)
        for entry in requests:
            token_budget(entry, model.context_length)
        return Prepared(requests, model.vocabulary)


@contextmanager
def serving(
    *models: ScriptedBackend,
    pinned: bool = True,
    max_concurrent: int = 8,
    max_queue: int = 8,
    max_tokens: int | None = None,
    access: Access | None = None,
    failure: MlxkError | None = None,
    delay: float = 0.0,
    no_sleep: NoSleep | None = None,
    apis: Sequence[Api] = (),
    **timing: float,
) -> Iterator[Client]:
    """Serve these models one after the other until the end of the block; with a `failure`, loading fails.

    Each prompt takes `delay` seconds. `apis` are spoken beside OpenAI's.
    """
    left = list(models)

    def load(_: ModelKey, unload: Callable[[], None]) -> ScriptedBackend:
        if failure is not None:
            raise failure
        unload()
        return left.pop(0)

    worker = Worker(load, max_concurrent)
    scheduler = Scheduler(ModelPool(worker), worker, Limits(max_concurrent, max_queue))
    key = ModelKey("org/scripted", "/nowhere")
    preparing = ScriptedPreparing(models, delay)
    catalog = Catalog(find_cache_dir(os.environ), ("scripted", key) if pinned else None)
    service = Service(scheduler, catalog, preparing, max_tokens, no_sleep=no_sleep or NoSleep(), **timing)
    app = create_app(service, access or Access(), [OPENAI, *apis])
    with Client(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        try:
            yield client
        finally:
            scheduler.close()
