"""Two APIs in one server: each has its own endpoints, and an error has the form of the API that owns the path."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from threading import Thread
from typing import Any

import pytest
import uvicorn
from conftest_runner import ScriptedBackend, ScriptedTokenizer, saying
from starlette.testclient import TestClient
from support.application import TEXT, serving
from support.toy_api import TOY
from support.wire import Wire, head

from mlxk2.server.api import render_error
from mlxk2.server.http.access import Access
from mlxk2.server.http.connection import Connection
from mlxk2.server.http.listener import bind
from mlxk2.server.openai.api import OPENAI

KEY = {"Authorization": "Bearer secret"}
TOYS = "/toy/say"
# The name of the prompt in the body of each endpoint.
PROMPTS = {TOYS: "text", TEXT: "prompt"}


class FaultyTokenizer(ScriptedTokenizer):
    """A tokenizer that raises an unexpected error for a certain text."""

    def encode(self, text: str, add_special_tokens: bool, context: int | None = None) -> list[int]:
        """Return tokens."""
        return [1 // (text != "fault"), *super().encode(text, add_special_tokens, context)]


def _model() -> ScriptedBackend:
    model = saying("Hi there")
    model.tokenizer = FaultyTokenizer()
    return model


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with serving(_model(), apis=[TOY], access=Access(api_key="secret")) as client:
        # The other client also checks that streams have OpenAI's form.
        yield TestClient(client.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def test_another_api_gives_whole_responses(client: TestClient) -> None:
    assert client.post(TOYS, json={"text": "Hello"}, headers=KEY).json() == {"said": "Hi there"}


def test_another_api_gives_streams(client: TestClient) -> None:
    response = client.post(TOYS, json={"text": "Hello", "stream": True}, headers=KEY)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, end = response.text.removesuffix("\n\n").split("\n\n")
    said = [json.loads(event.removeprefix("event: said\ndata: ")) for event in events]
    assert "".join(said) == "Hi there"
    assert end == "event: end\ndata: null"


def test_the_description_has_both_apis_and_their_errors(client: TestClient) -> None:
    document = client.get("/openapi.json", headers=KEY).json()
    for path, name in ((TOYS, "Oops"), (TEXT, "Error")):
        content = document["paths"][path]["post"]["responses"]["400"]["content"]
        assert content == {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
        assert name in document["components"]["schemas"]


def assert_is_of(path: str, response: Any, status: int) -> None:
    """Fail unless an error has the form of the API that owns the path."""
    assert response.status_code == status, response.text
    if path.startswith(TOY.paths):
        assert response.json().keys() == {"oops", "status"}
        assert response.json()["oops"] and response.json()["status"] == status
    else:
        assert response.json().keys() == {"error"}
        assert response.json()["error"].keys() == {"message", "type", "param", "code"}


# The status of each error and its difference from a valid request.
ERRORS: Mapping[str, tuple[int, dict[str, Any]]] = {
    "no key": (401, {"headers": {}}),
    "a foreign host": (403, {"headers": {**KEY, "Host": "example.org"}}),
    "a foreign origin": (403, {"headers": {**KEY, "Origin": "http://example.org"}}),
    "another method": (405, {"method": "PUT"}),
    "too large": (413, {"content": b" " * ((32 << 20) + 1)}),
    "too many values": (413, {"content": b"[" * ((1 << 20) + 1)}),
    "an unknown coding": (415, {"headers": {**KEY, "Content-Encoding": "br"}}),
    "a wrong coding": (400, {"headers": {**KEY, "Content-Encoding": "gzip"}}),
    "no JSON": (400, {"content": b"{"}),
    "a wrong field": (400, {"prompt": {}}),
    "a missing model": (404, {"model": "org/missing"}),
    "too long": (400, {"prompt": "x" * 5000}),
    "a stream that is too long": (400, {"prompt": "x" * 5000, "stream": True}),
    "a fault": (500, {"prompt": "fault"}),
    "a fault of a stream": (500, {"prompt": "fault", "stream": True}),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("path", PROMPTS)
def test_an_error_has_the_form_of_the_api_that_owns_the_path(client: TestClient, path: str, name: str) -> None:
    status, other = ERRORS[name]
    given = {"method": "POST", "headers": KEY, "prompt": "Hello", **other}
    method, headers, content = given.pop("method"), given.pop("headers"), given.pop("content", None)
    given[PROMPTS[path]] = given.pop("prompt")
    sent = content or json.dumps(given).encode()
    assert_is_of(path, client.request(method, path, content=sent, headers=headers), status)


@pytest.mark.parametrize("path", ["/toy", "/toy/", "/toy//none/", "/toy/say/more", "/v1/toys", "/v1/toys/one"])
def test_another_api_owns_its_paths_and_all_paths_below(client: TestClient, path: str) -> None:
    missing = client.get(path, headers=KEY)
    assert_is_of("/toy", missing, 404)
    assert missing.json()["oops"].endswith("The paths are: POST /toy/say.")
    assert_is_of("/toy", client.get(path), 401)


@pytest.mark.parametrize("path", ["/toys", "/v1/toy", "/v1/none", "/none", "/page/none", "/docs"])
def test_errors_of_all_other_paths_have_the_form_of_the_first_api(client: TestClient, path: str) -> None:
    assert_is_of("/v1", client.get(path, headers=KEY), 404)


@pytest.fixture(scope="module")
def port(client: TestClient) -> Iterator[int]:
    listener = bind("127.0.0.1", 0)
    render = partial(render_error, [OPENAI, TOY])
    kind: Any = partial(Connection, stall_seconds=30, render=render)
    server = uvicorn.Server(uvicorn.Config(client.app, http=kind, lifespan="off", log_config=None))
    thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    ("line", "is_toy"),
    [
        (f"POST {TOYS} HTTP/1.1", True),
        (f"POST {TOYS}?x=%FF HTTP/1.1", True),
        ("POST /%74oy/say HTTP/1.1", True),
        (f"POST {TEXT} HTTP/1.1", False),
        ("POST /toys HTTP/1.1", False),
        ("POST * HTTP/1.1", False),
    ],
)
@pytest.mark.parametrize(
    ("field", "status"),
    [
        ("Transfer-Encoding: chunked\r\n\r\nno size", 400),
        (f"X: {'x' * 100_000}", 431),
        (":", 400),
    ],
)
def test_bytes_that_are_not_http_are_refused_in_the_form_of_the_path(
    port: int, line: str, is_toy: bool, field: str, status: int
) -> None:
    with Wire(port) as wire:
        response = wire.send(head(line, "Authorization: Bearer secret", field, port=port)).response()
    assert response.status == status
    assert set(response.json) == ({"oops", "status"} if is_toy else {"error"})


def test_bytes_without_a_path_are_refused_in_the_form_of_the_first_api(port: int) -> None:
    with Wire(port) as wire:
        assert set(wire.send(b"nothing\r\n\r\n").response().json) == {"error"}
