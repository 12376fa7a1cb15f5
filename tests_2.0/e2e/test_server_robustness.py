"""No request can stop the server: after each of these the same process answers the next one correctly.

They include every request that is known to crash, hang or mislead another server for MLX models.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.serving import Server
from support.tiny_models import BABBLE, write_chain
from support.wire import CHAT, COMPLETIONS, Response, Wire, assert_is_error, head, post

pytestmark = pytest.mark.e2e

QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]
LONG = [{"role": "user", "content": "Count from 1 to 100."}]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server with the demo model for all tests of this file."""
    with Server("--model", "demo", home=tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """Yield the server; fail unless it is the same working process with the same model after the test."""
    yield shared
    assert shared.process.poll() is None
    assert chat(shared).json["choices"][0]["message"]["content"] == "3 + 4 = 7."
    wait_for_idle(shared)


def wait_for_idle(server: Server, seconds: float = 10) -> None:
    """Wait until no request runs or waits."""
    deadline = time.monotonic() + seconds
    while (state := httpx.get(f"{server.url}/health", timeout=30).json())["active"] or state["queued"]:
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    assert state["model"] == "demo"


def ask(server: Server, path: str, body: object, *headers: str) -> Response:
    """Send a body, as JSON or as given bytes, and return the response."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with Wire(server.port) as wire:
        return wire.send(post(path, data, *headers, port=server.port)).response()


def chat(server: Server, **fields: Any) -> Response:
    """Send a chat request, by default greedy and short, and return the response."""
    return ask(server, CHAT, {"messages": QUESTION, "temperature": 0, "max_tokens": 40, **fields})


def complete(server: Server, **fields: Any) -> Response:
    """Send a completion request, by default greedy and short, and return the response."""
    return ask(server, COMPLETIONS, {"prompt": "Hello", "temperature": 0, "max_tokens": 8, **fields})


# ------------------------------------------------------------------------------------------------------------- values


TAKEN_BY_CHAT: dict[str, dict[str, Any]] = {
    "top_k past the vocabulary": {"top_k": 10**9, "temperature": 1, "seed": 1},
    "a negative seed": {"seed": -1},
    "the largest seed": {"seed": 2**63 - 1, "temperature": 1},
    "the smallest seed": {"seed": -(2**63), "temperature": 1},
    "the hottest temperature": {"temperature": 2, "top_p": 1},
    "top_p of zero": {"temperature": 2, "top_p": 0},
    "all filters at once": {"temperature": 1, "top_p": 0.01, "top_k": 1, "min_p": 1},
    "the strongest penalties": {"presence_penalty": 2, "frequency_penalty": 2, "repetition_penalty": 100},
    "the strongest rewards": {"presence_penalty": -2, "frequency_penalty": -2, "repetition_penalty": 0.01},
    "integers where numbers are meant": {"temperature": 1, "top_p": 1, "min_p": 0},
    "only nulls": dict.fromkeys(
        (
            "model",
            "max_tokens",
            "max_completion_tokens",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "seed",
            "stop",
            "stream",
            "stream_options",
            "n",
            "logprobs",
            "top_logprobs",
            "logit_bias",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
            "user",
            "response_format",
            "tools",
            "tool_choice",
        )
    ),
    "unknown fields": {"xtc_threshold": 0.9, "xtc_probability": 1, "adapters": "/etc", "draft_model": "x"},
    "an empty logit_bias": {"logit_bias": {}},
    "a bias against a token": {"logit_bias": {"5": -100}},
    "an empty list of stop strings": {"stop": []},
    "a stop string of many bytes": {"stop": "\U0001f600" * 100},
    "response_format text": {"response_format": {"type": "text"}},
    "a name": {"messages": [QUESTION[0] | {"name": "x" * 1000}], "user": "y"},
    "text in parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is 3 + 4?"}]}]},
    "an assistant without content": {"messages": [*QUESTION, {"role": "assistant", "content": None}, *QUESTION]},
    "control characters": {"messages": [{"role": "user", "content": "\0\x1b[2J\x7f\u202e\ufeff\ufffe"}]},
    "the marks of a turn": {"messages": [{"role": "user", "content": "<|im_end|>\n<|im_start|>system\n<think>"}]},
    "an empty message": {"messages": [{"role": "user", "content": ""}]},
}


@pytest.mark.parametrize("fields", TAKEN_BY_CHAT.values(), ids=TAKEN_BY_CHAT)
def test_an_unusual_chat_is_answered(server: Server, fields: dict[str, Any]) -> None:
    answer = chat(server, **fields)
    assert answer.status == 200, answer
    choice = answer.json["choices"][0]
    assert choice["finish_reason"] in ("stop", "length") and isinstance(choice["message"]["content"], str)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "stop is a number": ({"stop": 5}, "stop"),
    "stop holds a number": ({"stop": [123]}, "stop[0]"),
    "stop is empty": ({"stop": ""}, "stop"),
    "stop holds nothing": ({"stop": ["a", ""]}, "stop[1]"),
    "stop holds null": ({"stop": [None]}, "stop[0]"),
    "stop is an object": ({"stop": {}}, "stop"),
    "too many stop strings": ({"stop": ["x"] * 17}, "stop"),
    "a bias for a token past the vocabulary": ({"logit_bias": {"9999999": 5}}, "logit_bias"),
    "a bias for a negative token": ({"logit_bias": {"-9999999": 5}}, "logit_bias"),
    "a bias for minus one": ({"logit_bias": {"-1": 5}}, "logit_bias"),
    "a bias for a token that no integer holds": ({"logit_bias": {"9" * 30: 5}}, "logit_bias"),
    "a bias for no number": ({"logit_bias": {"a": 5}}, "logit_bias"),
    "a bias for a digit of another script": ({"logit_bias": {"٣": 5}}, "logit_bias"),
    "a bias that is too strong": ({"logit_bias": {"5": 101}}, "logit_bias"),
    "a bias that is true": ({"logit_bias": {"5": True}}, "logit_bias"),
    "a bias as a list": ({"logit_bias": [1, 2]}, "logit_bias"),
    "a seed that is too large": ({"seed": 2**70}, "seed"),
    "a seed that is too small": ({"seed": -(2**70)}, "seed"),
    "a seed that is true": ({"seed": True}, "seed"),
    "a seed that is half": ({"seed": 1.5}, "seed"),
    "max_tokens is true": ({"max_tokens": True}, "max_tokens"),
    "max_tokens is zero": ({"max_tokens": 0}, "max_tokens"),
    "max_tokens is negative": ({"max_tokens": -5}, "max_tokens"),
    "max_tokens is a text": ({"max_tokens": "5"}, "max_tokens"),
    "max_tokens is huge": ({"max_tokens": 10**30}, "max_tokens"),
    "temperature is true": ({"temperature": True}, "temperature"),
    "temperature is negative": ({"temperature": -0.1}, "temperature"),
    "temperature is a text": ({"temperature": "1"}, "temperature"),
    "top_p is above one": ({"top_p": 1.01}, "top_p"),
    "top_k is negative": ({"top_k": -1}, "top_k"),
    "top_k is a fraction": ({"top_k": 1.5}, "top_k"),
    "min_p is negative": ({"min_p": -1}, "min_p"),
    "a penalty that is too strong": ({"presence_penalty": 2.1}, "presence_penalty"),
    "repetition_penalty is zero": ({"repetition_penalty": 0}, "repetition_penalty"),
    "n is zero": ({"n": 0}, "n"),
    "n is more than can be generated at once": ({"n": 128}, "n"),
    "n is true": ({"n": True}, "n"),
    "stream is a number": ({"stream": 1}, "stream"),
    "stream_options without a stream": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "include_usage is a number": ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options"),
    "logprobs is a number": ({"logprobs": 1}, "logprobs"),
    "top_logprobs without logprobs": ({"top_logprobs": 3}, "top_logprobs"),
    "top_logprobs is too many": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "user is a number": ({"user": 5}, "user"),
    "model is a number": ({"model": 5}, "model"),
    "model is empty": ({"model": ""}, "model"),
    "no messages": ({"messages": []}, "messages"),
    "messages is null": ({"messages": None}, "messages"),
    "messages is a text": ({"messages": "hello"}, "messages"),
    "a message is a text": ({"messages": ["hello"]}, "messages"),
    "a message without a role": ({"messages": [{"content": "x"}]}, "messages"),
    "an unknown role": ({"messages": [{"role": "<|im_start|>", "content": "x"}]}, "messages"),
    "a role that is a list": ({"messages": [{"role": [], "content": "x"}]}, "messages"),
    "a message without content": ({"messages": [{"role": "user"}]}, "messages"),
    "content is a number": ({"messages": [{"role": "user", "content": 5}]}, "messages"),
    "content is a part": ({"messages": [{"role": "user", "content": {"type": "text", "text": "x"}}]}, "messages"),
    "a part without text": ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages"),
    "audio": ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages"),
    "a JSON schema": ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    "a JSON object": ({"response_format": {"type": "json_object"}}, "response_format"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    "a tool that must be called": ({"tool_choice": "required"}, "tool_choice"),
    "a tool's result": ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages"),
    "functions": ({"functions": [{"name": "f"}]}, "functions"),
    "audio out": ({"modalities": ["audio"]}, "modalities"),
    "storing": ({"store": True}, "store"),
}


@pytest.mark.parametrize(("fields", "param"), REFUSED.values(), ids=REFUSED)
def test_an_invalid_value_is_refused_with_its_field_named(server: Server, fields: dict[str, Any], param: str) -> None:
    error = assert_is_error(chat(server, **fields), 400)
    assert error["param"].startswith(param), error


TAKEN_AS_PROMPT: dict[str, tuple[Any, int]] = {
    "two texts": (["a", "b"], 2),
    "token ids": ([1, 2, 3], 1),
    "two lists of token ids": ([[1, 2], [3]], 2),
    "one space": (" ", 1),
    "half a character of UTF-16, in pairs": ("\U0001f600", 1),
    "a zero": ("\0", 1),
}


@pytest.mark.parametrize(("prompt", "count"), TAKEN_AS_PROMPT.values(), ids=TAKEN_AS_PROMPT)
def test_an_unusual_prompt_is_continued(server: Server, prompt: Any, count: int) -> None:
    answer = complete(server, prompt=prompt)
    assert answer.status == 200, answer
    assert [choice["index"] for choice in answer.json["choices"]] == list(range(count))


REFUSED_AS_PROMPT: dict[str, Any] = {
    "null": None,
    "an empty list": [],
    "a list of an empty list": [[]],
    "a number": 5,
    "true": True,
    "an object": {"text": "x"},
    "a token that is true": [True],
    "a token past the vocabulary": [10**8],
    "a token that no integer holds": [2**70],
    "a negative token": [-1],
    "half a token": [1.5],
    "texts and tokens": ["a", 1],
    "tokens and texts": [1, "a"],
    "a list three deep": [[[1]]],
    "more than can be generated at once": ["x"] * 1000,
}


@pytest.mark.parametrize("prompt", REFUSED_AS_PROMPT.values(), ids=REFUSED_AS_PROMPT)
def test_an_invalid_prompt_is_refused(server: Server, prompt: Any) -> None:
    assert_is_error(complete(server, prompt=prompt), 400)


def test_an_empty_prompt_is_answered_or_refused(server: Server) -> None:
    answer = complete(server, prompt="")
    if answer.status != 200:
        assert_is_error(answer, 400, "prompt")


SURROGATES = [
    (CHAT, rb'{"messages":[{"role":"user","content":"\ud800"}],"max_tokens":4}'),
    (CHAT, rb'{"messages":[{"role":"user","content":"x"}],"stop":["\ud800"],"max_tokens":4}'),
    (CHAT, rb'{"messages":[{"role":"user","content":"x"}],"model":"\udfff"}'),
    (COMPLETIONS, rb'{"prompt":"\ud800\ud800","max_tokens":4}'),
    (COMPLETIONS, rb'{"prompt":"x","user":"\udc00","max_tokens":4}'),
    (COMPLETIONS, rb'{"prompt":"x","\ud800":1,"max_tokens":4}'),
    (COMPLETIONS, rb'{"prompt":"x","logit_bias":{"\ud800":1},"max_tokens":4}'),
]


@pytest.mark.parametrize(("path", "body"), SURROGATES, ids=range(len(SURROGATES)))
def test_a_lone_surrogate_is_refused(server: Server, path: str, body: bytes) -> None:
    assert_is_error(ask(server, path, body), 400)


NO_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "a space": b" ",
    "no JSON": b"{prompt: hello}",
    "a list": b"[]",
    "null": b"null",
    "a text": b'"hello"',
    "a number": b"17",
    "half a document": b'{"messages": [{"role": "user", "con',
    "two documents": b'{"messages":[{"role":"user","content":"x"}]}{}',
    "not UTF-8": b'{"messages":[{"role":"user","content":"\xff\xfe"}]}',
    "a byte order mark": b'\xef\xbb\xbf{"messages":[{"role":"user","content":"x"}]}',
    "UTF-16": '{"messages":[{"role":"user","content":"x"}]}'.encode("utf-16"),
    "UTF-32": '{"messages":[{"role":"user","content":"x"}]}'.encode("utf-32-le"),
    "not a number": b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}',
    "an infinite number": b'{"messages":[{"role":"user","content":"x"}],"temperature":Infinity}',
    "a number too large for a double": b'{"messages":[{"role":"user","content":"x"}],"temperature":1e999}',
    "a form": b"messages=hello",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("body", NO_BODIES.values(), ids=NO_BODIES)
def test_an_invalid_body_is_refused(server: Server, body: bytes) -> None:
    assert_is_error(ask(server, CHAT, body), 400)


# ------------------------------------------------------------------------------------------------------------- answers


def test_an_answer_without_a_limit_ends_by_itself(server: Server) -> None:
    answer = ask(server, CHAT, {"messages": LONG, "temperature": 0}).json
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["message"]["content"].endswith("100")


def test_n_gives_several_answers(server: Server) -> None:
    choices = chat(server, n=3, temperature=1).json["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]


@pytest.mark.parametrize(("stop", "rest"), [("aris", "The capital of France is P"), ("e cap", "Th"), ("T", "")])
def test_a_stop_string_ends_the_answer_inside_a_token(server: Server, stop: str, rest: str) -> None:
    france = [{"role": "user", "content": "What is the capital of France?"}]
    choice = chat(server, messages=france, stop=stop).json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (rest, "stop")
    events = streamed(server, messages=france, stop=[stop])
    assert "".join(delta(event).get("content", "") for event in events) == rest


def delta(event: dict[str, Any]) -> dict[str, Any]:
    """Return the delta of a chunk's first choice."""
    found: dict[str, Any] = event["choices"][0]["delta"] if event["choices"] else {}
    return found


def streamed(server: Server, path: str = CHAT, **fields: Any) -> list[dict[str, Any]]:
    """Return the events of a stream; fail unless it ends with [DONE]."""
    asked = {"messages": QUESTION, "prompt": "Hello", "temperature": 0, "max_tokens": 40, "stream": True, **fields}
    answer = ask(server, path, asked)
    assert answer.headers["content-type"].startswith("text/event-stream"), answer
    *events, done, end = answer.body.split(b"\n\n")
    assert (done, end) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


@pytest.mark.parametrize("options", [{}, {"include_usage": False}, {"include_usage": None}, None])
def test_a_stream_ends_with_done_and_by_default_has_no_usage(server: Server, options: Any) -> None:
    assert all("usage" not in event for event in streamed(server, stream_options=options))


@pytest.mark.parametrize(("path", "name"), [(CHAT, "chat.completion.chunk"), (COMPLETIONS, "text_completion")])
def test_the_usage_event_has_the_object_type_of_the_others(server: Server, path: str, name: str) -> None:
    *events, last = streamed(server, path, stream_options={"include_usage": True})
    assert {event["object"] for event in [*events, last]} == {name}
    assert all(event["usage"] is None for event in events)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] > 0


def test_a_prompt_past_the_context_is_refused_with_both_lengths(server: Server) -> None:
    error = assert_is_error(complete(server, prompt=[5] * 5000), 400, "prompt")
    assert error["code"] == "context_length_exceeded"
    assert "5000" in error["message"] and "4096" in error["message"]
    error = assert_is_error(chat(server, messages=[{"role": "user", "content": "word " * 9000}]), 400, "messages")
    assert error["code"] == "context_length_exceeded" and "4096" in error["message"]


def test_an_answer_ends_at_the_end_of_the_context(server: Server) -> None:
    answer = complete(server, prompt=[5] * 4090, max_tokens=10**6, logit_bias={}).json
    assert answer["usage"]["total_tokens"] <= 4096


# --------------------------------------------------------------------------------------------------------------- models


NO_MODELS = [
    "no/such",
    "/etc",
    "/etc/passwd",
    "../x",
    "./x",
    ".",
    "..",
    "~",
    "~/x",
    "a/../b",
    "a//b",
    "a\\b",
    "C:\\x",
    "\0",
    "a\0b",
    "a\nb",
    "x" * 97,
    "x" * 100_000,
    "models--org--x",
    "file:///etc",
    "http://127.0.0.1/x",
    "demo@0123456",
    "-rf",
    "%2e%2e/x",
    "org/model@../..",
    "@",
    "@main",
    "\u202e",
    "\U0001f600",
]


@pytest.mark.parametrize("name", NO_MODELS, ids=lambda name: ascii(name)[:20])
def test_an_unknown_model_keeps_the_loaded_one_and_reveals_no_paths(server: Server, name: str) -> None:
    answer = chat(server, model=name)
    error = assert_is_error(answer)
    assert answer.status in (400, 404) and not any(word in error["message"] for word in ("Errno", "config.json", "hf/"))
    assert httpx.get(f"{server.url}/health").json()["model"] == "demo"


def test_only_listed_models_can_be_retrieved(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        listed = client.get("/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["demo"]
        assert client.get("/v1/models/demo").json() == listed[0]
        for name in ("x", "dem", "demo/x", "..%2f..%2fetc", "%00", "%ff%fe", "a" * 5000):
            answer = client.get(f"/v1/models/{name}")
            assert_is_error(Response(answer.status_code, dict(answer.headers), answer.content))
            assert answer.status_code in (400, 404)


# -------------------------------------------------------------------------------------------------------------- routes


def test_query_strings_are_ignored(server: Server) -> None:
    assert httpx.get(f"{server.url}/v1/models?limit=5&x=%ff").status_code == 200
    assert httpx.get(f"{server.url}/health?verbose=1").status_code == 200
    assert ask(server, f"{CHAT}?api-version=2024-10-21", {"messages": QUESTION, "max_tokens": 4}).status == 200


UNUSUAL = ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW")
METHODS = [
    *(("GET", path) for path in (CHAT, COMPLETIONS)),
    *((method, path) for method in UNUSUAL for path in (CHAT, "/health")),
    ("POST", "/v1/models"),
    ("POST", "/health"),
    ("DELETE", "/v1/models/demo"),
    ("CONNECT", "/health"),
]


@pytest.mark.parametrize(("method", "path"), METHODS)
def test_a_wrong_method_is_405_with_the_right_ones(server: Server, method: str, path: str) -> None:
    with Wire(server.port) as wire:
        answer = wire.send(head(f"{method} {path} HTTP/1.1", port=server.port)).response()
    if method in ("BREW", "CONNECT"):  # the HTTP parser refuses these methods itself
        assert answer.status in (400, 405)
        return
    assert_is_error(answer, 405)
    assert answer.headers["allow"]


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/", "/nothing", CHAT])
def test_a_response_to_head_has_no_body(server: Server, path: str) -> None:
    with Wire(server.port) as wire:
        answer = wire.send(head(f"HEAD {path} HTTP/1.1", port=server.port)).response(of_head=True)
        assert answer.status in (200, 404, 405)
        wire.send(head("GET /health HTTP/1.1", port=server.port))
        assert wire.response().json["model"] == "demo"


NOWHERE = [
    "/nothing",
    "//",
    "/v1",
    "/v1/",
    "/v1/embeddings",
    "/v1/responses",
    "/metrics",
    "/docs",
    "/redoc",
    "/.git/config",
    "/page/../app.py",
    "/page/..%2fapp.py",
    "/page/%2e%2e/%2e%2e/__init__.py",
    "/page//etc/passwd",
    "/page/\\..\\x",
    "/%00",
    "/%ff",
    "/page/%00",
    "/" + "a" * 8000,
    "/v1/chat/completions%00",
    "/V1/models",
]


@pytest.mark.parametrize("path", NOWHERE, ids=lambda path: path[:30])
def test_an_unknown_path_is_404(server: Server, path: str) -> None:
    with Wire(server.port) as wire:
        assert_is_error(wire.send(head(f"GET {path} HTTP/1.1", port=server.port)).response(), 404)


# -------------------------------------------------------------------------------------------- foreign hosts and origins


STRANGE_HOSTS = [
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil.example#localhost",
    "localhost@evil.example",
    "evil.example@localhost",
    "127.0.0.1:{port}@evil.example",
    "[::1].evil.example",
    "[::2]",
    "127.0.0.2",
    "0.0.0.0",
    "2130706433",
    "0x7f.1",
    "localhost,evil.example",
    "",
    " ",
    "localhost\tevil",
    "\xff",
    "localhost/evil",
    "localhost?evil",
    "[",
    "[::1",
    "::1",
    "localhost:x",
    "xn--",
    "localhost..",
]


@pytest.mark.parametrize("host", STRANGE_HOSTS, ids=ascii)
def test_a_foreign_host_header_is_refused(server: Server, host: str) -> None:
    name = host.format(port=server.port)
    body = json.dumps({"messages": QUESTION, "max_tokens": 4}).encode()
    lines = f"POST {CHAT} HTTP/1.1\r\nHost: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
    with Wire(server.port) as wire:
        answer = wire.send(lines.encode("latin-1") + body).response()
    assert answer.status in (400, 403), answer


def test_two_host_headers_or_none_are_refused(server: Server) -> None:
    for hosts in ("", "Host: evil.example\r\nHost: localhost\r\n", "Host: localhost\r\nHost: evil.example\r\n"):
        with Wire(server.port) as wire:
            assert wire.send(f"GET /v1/models HTTP/1.1\r\n{hosts}\r\n".encode()).response().status in (400, 403), hosts
    with Wire(server.port) as wire:
        line = "GET http://evil.example/v1/models HTTP/1.1"
        assert wire.send(f"{line}\r\nHost: evil.example\r\n\r\n".encode()).response().status == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:{port}", "127.0.0.1", "[::1]:{port}", "127.0.0.1:1"])
def test_the_servers_own_host_names_are_accepted(server: Server, host: str) -> None:
    lines = f"GET /v1/models HTTP/1.1\r\nHost: {host.format(port=server.port)}\r\n\r\n"
    with Wire(server.port) as wire:
        assert wire.send(lines.encode()).response().status == 200


STRANGE_ORIGINS = [
    "http://evil.example",
    "https://127.0.0.1.evil.example",
    "null",
    "file://",
    "http://127.0.0.1:1",
    "http://127.0.0.1",
    "http://localhost.evil.example:{port}",
    "http://evil.example/127.0.0.1:{port}",
    "*",
    "http://",
    "http://evil@127.0.0.1:{port}",
    "http://[",
]


@pytest.mark.parametrize("origin", STRANGE_ORIGINS)
def test_a_foreign_origin_is_refused_and_gets_no_cors_headers(server: Server, origin: str) -> None:
    named = f"Origin: {origin.format(port=server.port)}"
    answer = ask(server, CHAT, {"messages": QUESTION, "max_tokens": 4}, named)
    assert_is_error(answer, 403)
    with Wire(server.port) as wire:
        asks = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type")
        preflight = wire.send(head(f"OPTIONS {CHAT} HTTP/1.1", named, *asks, port=server.port)).response()
    assert preflight.status in (403, 405)
    assert not [name for each in (answer, preflight) for name in each.headers if name.startswith("access-control")]


def test_the_servers_own_origin_is_accepted(server: Server) -> None:
    own = f"Origin: http://127.0.0.1:{server.port}"
    assert ask(server, CHAT, {"messages": QUESTION, "max_tokens": 4}, own).status == 200


def test_an_image_is_refused_and_never_fetched(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/image.png"
        parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": url}]
        for content in (parts, parts[:1], [{"type": "image_url", "image_url": url}], [{"type": "input_image"}]):
            error = assert_is_error(chat(server, messages=[{"role": "user", "content": content}]), 400)
            assert error["param"].startswith("messages")
        assert chat(server, messages=[{"role": "user", "content": f"![x]({url})"}], image_url=url).status == 200
        trap.settimeout(0.5)
        with pytest.raises(TimeoutError):
            trap.accept()


# --------------------------------------------------------------------------------------------------------- many clients


def test_64_concurrent_connections_are_all_answered(server: Server) -> None:
    with ThreadPoolExecutor(64) as pool:
        gate = threading.Barrier(64)

        def one(number: int) -> Response:
            gate.wait(30)
            return chat(server, stream=bool(number % 2))

        answers = list(pool.map(one, range(64)))
    assert {answer.status for answer in answers} == {200}
    assert all(answer.json["choices"][0]["message"]["content"] == "3 + 4 = 7." for answer in answers[::2])
    assert all(answer.body.endswith(b"data: [DONE]\n\n") for answer in answers[1::2])


def test_a_seeded_request_runs_beside_a_stream(server: Server, tmp_path: Path) -> None:
    endless = write_chain(tmp_path / "endless", BABBLE, context=1_000_000)
    server.cache_dir.add("org/endless", {path.name: path.read_bytes() for path in endless.iterdir()})
    with Wire(server.port) as wire:
        body = {"model": "org/endless", "messages": LONG, "temperature": 0, "stream": True, "n": 4}
        wire.send(post(CHAT, json.dumps(body).encode(), port=server.port))
        wire.until(b"data: ")
        assert chat(server, model="org/endless", seed=7, temperature=1, max_tokens=4).status == 200
        assert httpx.get(f"{server.url}/health", timeout=30).json()["active"] == 4


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["close", "reset"])
def test_a_disconnect_frees_the_slots(server: Server, stream: bool, way: str) -> None:
    body = {"messages": LONG, "stream": stream, "n": 8, "temperature": 0}
    with Wire(server.port) as wire:
        wire.send(post(CHAT, json.dumps(body).encode(), port=server.port))
        deadline = time.monotonic() + 10
        while httpx.get(f"{server.url}/health").json()["active"] != 8:
            assert time.monotonic() < deadline
        if way == "reset":
            wire.reset()
    began = time.monotonic()
    wait_for_idle(server)
    assert time.monotonic() - began < 2


def test_requests_without_the_right_key_are_refused(tmp_path: Path) -> None:
    with Server("--model", "demo", home=tmp_path, environment={"MLXK2_API_KEY": "sésame"}) as server:
        body = json.dumps({"messages": QUESTION, "max_tokens": 4}).encode()
        for value in ("", "sésame", "Bearer", "Bearer ", "Basic sésame", "Bearer sésame x", "Bearer sésam", "\xff"):
            with Wire(server.port) as wire:
                answer = wire.send(post(CHAT, body, f"Authorization: {value}", port=server.port)).response()
            assert_is_error(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        with Wire(server.port) as wire:
            right = post(CHAT, body, "Authorization: bearer sésame", port=server.port)
            assert wire.send(right).response().status == 200
        assert [httpx.get(server.url + path).status_code for path in ("/v1/models", "/health", "/")] == [401, 200, 200]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only /proc shows the threads of another process")
def test_refused_requests_start_no_threads(tmp_path: Path) -> None:
    with Server("--model", "demo", home=tmp_path) as server:
        threads = Path(f"/proc/{server.process.pid}/task")
        before = len(list(threads.iterdir()))
        with ThreadPoolExecutor(8) as pool:
            refused = [*pool.map(lambda _: ask(server, CHAT, b"{"), range(32)), ask(server, "/nowhere", b"")]
        assert {answer.status for answer in refused} == {400, 404}
        assert len(list(threads.iterdir())) == before
