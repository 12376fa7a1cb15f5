"""The two endpoints that generate, on scripted models: their requests and their responses."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest_runner import ScriptedBackend, saying
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from openai.resources.chat import Completions as ChatCompletions
from openai.resources.completions import Completions
from starlette.routing import Route
from support.application import CHAT, TEXT, Client, serving

from mlxk2 import __version__
from mlxk2.runner.request import Sampling
from mlxk2.server.http.access import Access
from mlxk2.server.openai.chat import ChatBody
from mlxk2.server.openai.completions import CompletionBody
from mlxk2.server.openai.fields import UNSUPPORTED_FIELDS


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving(saying("Hi")) as client:
        yield client


def test_health_has_exactly_the_documented_fields(client: Client) -> None:
    client.ask()
    assert client.get("/health").json() == {
        "status": "ok",
        "model": "org/scripted",
        "loading": None,
        "active": 0,
        "queued": 0,
        "version": __version__,
    }


def test_a_chat_response_has_exactly_the_documented_fields(client: Client) -> None:
    answer = client.ask()
    assert list(answer) == ["id", "created", "model", "object", "choices", "usage"]
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", "org/scripted")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": len("user:Hello;"),
        "completion_tokens": 3,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_a_completion_response_has_exactly_the_documented_fields(client: Client) -> None:
    answer = client.ask(TEXT)
    assert list(answer) == ["id", "created", "model", "object", "choices", "usage"]
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "Hi", "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"]["prompt_tokens"] == len("Hello")


def test_every_response_has_its_own_id(client: Client) -> None:
    assert client.ask()["id"] != client.ask()["id"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_null_and_unknown_fields_are_ignored(client: Client, path: str) -> None:
    kind = ChatBody if path == CHAT else CompletionBody
    nulls = {name: None for name, field in kind.model_fields.items() if not field.is_required()}
    expected = client.ask(path)["choices"]
    assert client.ask(path, **nulls)["choices"] == expected
    assert client.ask(path, invented=[1, {"x": None}])["choices"] == expected


# ---------------------------------------------------------------------------------------------- OpenAPI description


def test_the_description_has_exactly_the_routes(client: Client) -> None:
    described = {
        (path, method.upper())
        for path, methods in client.get("/openapi.json").json()["paths"].items()
        for method in methods
    }
    assert isinstance(client.app, FastAPI)
    routes = {
        (route.path.replace(":path", ""), method)
        for route in client.app.routes
        if isinstance(route, Route) and route.include_in_schema
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert described == routes


def test_the_description_is_valid_and_covers_streams(client: Client) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for kind in schemas.values():
        Draft202012Validator.check_schema(kind)
    assert set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document))) <= set(schemas)
    for path in (CHAT, TEXT):
        operation = document["paths"][path]["post"]
        assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
        assert set(operation["responses"]) == {"200", "400", "403", "404", "405", "413", "415", "431", "500", "503"}


@pytest.mark.parametrize(
    ("message", "is_right"),
    [
        ({"role": "user", "content": "x"}, True),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, True),
        ({"role": "assistant", "content": None}, True),
        ({"role": "assistant"}, True),
        ({"role": "user", "content": None}, False),
        ({"role": "system"}, False),
        ({"role": "user", "content": []}, False),
        ({"role": "tool", "content": "x"}, False),
    ],
)
def test_the_description_accepts_exactly_the_valid_messages(client: Client, message: Any, is_right: bool) -> None:
    document = client.get("/openapi.json").json()
    schema = {"$ref": "#/components/schemas/Message", "components": document["components"]}
    assert Draft202012Validator(schema).is_valid(message) == is_right
    assert client.post(CHAT, json={"messages": [message]}).is_success == is_right


def test_the_description_mentions_a_key_if_there_is_one(client: Client) -> None:
    document = client.get("/openapi.json").json()
    assert "securitySchemes" not in document["components"]
    with serving(access=Access(api_key="secret")) as guarded:
        document = guarded.get("/openapi.json", headers={"Authorization": "Bearer secret"}).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    needs = {path: "security" in op for path, methods in document["paths"].items() for op in methods.values()}
    assert needs == {path: path != "/health" for path in document["paths"]}
    assert all(
        ("401" in op["responses"]) == ("security" in op)
        for methods in document["paths"].values()
        for op in methods.values()
    )


# Accepted fields that do not affect the response.
WITHOUT_EFFECT = {
    "metadata",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
}
OF_THE_CLIENT = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}


@pytest.mark.parametrize(("create", "kind"), [(ChatCompletions.create, ChatBody), (Completions.create, CompletionBody)])
def test_every_parameter_of_the_openai_client_is_known(create: Any, kind: Any) -> None:
    given = set(inspect.signature(create).parameters) - OF_THE_CLIENT
    assert given - set(kind.model_fields) - set(UNSUPPORTED_FIELDS) <= WITHOUT_EFFECT


# --------------------------------------------------------------------------------------------------------- requests


def prompt_of(*messages: Any) -> str:
    """Return the prompt of a conversation."""
    model = saying("Hi")
    with serving(model) as client:
        client.ask(messages=list(messages))
    return model.prompts[0]


def test_roles_parts_and_names_reach_the_chat_template() -> None:
    assert (
        prompt_of(
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}],
                "name": "Ann",
            },
            {"role": "assistant", "content": None},
            {"role": "user", "content": ""},
        )
        == "system:Be brief.;Ann user:Hello;assistant:;user:;"
    )


def test_a_text_prompt_begins_with_the_bos_token() -> None:
    model = saying("Hi", bos_token="<|start|>")
    with serving(model) as client:
        client.ask(TEXT, prompt="Hello")
        client.ask(TEXT, prompt="")
        client.ask(TEXT, prompt=[72, 105])
    assert model.prompts == ["<|start|>Hello", "<|start|>", "Hi"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_all_sampling_parameters_reach_the_model(path: str) -> None:
    model = saying("Hi")
    asked: dict[str, Any] = {
        "temperature": 0.25,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "seed": 7,
    }
    with serving(model) as client:
        client.ask(path, **asked, logit_bias={"65": -100, "66": 1.5}, stop=["x", "y"], max_tokens=9)
        client.ask(path, stop="x")
    assert model.requests[0].sampling == Sampling(**asked, logit_bias=((65, -100), (66, 1.5)))
    assert (model.requests[0].stop, model.requests[0].max_tokens) == (("x", "y"), 9)
    assert (model.requests[1].stop, model.requests[1].sampling) == (("x",), Sampling())


def test_several_answers_have_different_seeds() -> None:
    model = saying("Hi")
    with serving(model) as client:
        answer = client.ask(n=3, seed=(1 << 63) - 1)
        client.ask(n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [request.sampling.seed for request in model.requests] == [
        (1 << 63) - 1,
        1 << 63,
        (1 << 63) + 1,
        None,
        None,
    ]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (11, 9)


def test_several_prompts_may_have_several_answers_each() -> None:
    model = ScriptedBackend(lambda request: request.prompt)
    with serving(model) as client:
        answer = client.ask(TEXT, prompt=["one", "three"], n=2)
        tokens = client.ask(TEXT, prompt=[[65], [66, 67]])
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "one"), (1, "one"), (2, "three"), (3, "three")]
    assert answer["usage"]["prompt_tokens"] == len("onethree")
    assert [choice["text"] for choice in tokens["choices"]] == ["A", "BC"]


# -------------------------------------------------------------------------------------------------------- responses


def test_reasoning_is_a_field_in_a_chat_and_text_in_a_completion() -> None:
    with serving(saying("<think>", "Hm.", "</think>", "\n\nHi")) as client:
        message = client.ask()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Hm.", "Hi")
        assert client.ask(TEXT)["choices"][0]["text"] == "<think>Hm.</think>\n\nHi"


def test_a_completion_keeps_white_space() -> None:
    with serving(saying("\n\n  and so on \n")) as client:
        assert client.ask(TEXT)["choices"][0]["text"] == "\n\n  and so on \n"


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        ("four", "one two three ", "stop"),
        (["six", "o t"], "one tw", "stop"),
        ("one", "", "stop"),
        ("fours", "one two three four", "stop"),
        ("e two three four!", "one two three four", "stop"),
    ],
)
def test_stop_strings_cut_text_and_logprobs(path: str, stop: Any, text: str, reason: str) -> None:
    with serving(saying("one two three four")) as client:
        (choice,) = client.ask(path, stop=stop, logprobs=True if path == CHAT else 0)["choices"]
    assert choice["finish_reason"] == reason
    said = choice["message"]["content"] if path == CHAT else choice["text"]
    assert said == text
    logprobs = choice["logprobs"]
    tokens = [entry["token"] for entry in logprobs["content"]] if path == CHAT else logprobs["tokens"]
    assert "".join(tokens) == text


# --------------------------------------------------------------------------------------------------------- logprobs


def test_logprobs_of_a_chat_have_the_documented_form() -> None:
    with serving(saying("Hi")) as client:
        (choice,) = client.ask(logprobs=True, top_logprobs=2)["choices"]
        assert choice["logprobs"] == {
            "refusal": None,
            "content": [
                {
                    "token": token,
                    "logprob": -ord(token) / 8,
                    "bytes": [ord(token)],
                    "top_logprobs": [
                        {"token": "\0", "logprob": 0.0, "bytes": [0]},
                        {"token": "\1", "logprob": -1 / 8, "bytes": [1]},
                    ],
                }
                for token in "Hi"
            ],
        }
        assert client.ask(logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
        assert client.ask(logprobs=False)["choices"][0]["logprobs"] is None


def test_logprobs_of_a_completion_include_the_chosen_token() -> None:
    with serving(saying("Hi")) as client:
        (choice,) = client.ask(TEXT, logprobs=1)["choices"]
        assert choice["logprobs"] == {
            "tokens": ["H", "i"],
            "token_logprobs": [-9.0, -13.125],
            "top_logprobs": [{"\0": 0.0, "H": -9.0}, {"\0": 0.0, "i": -13.125}],
            "text_offset": [0, 1],
        }
        assert client.ask(TEXT, logprobs=0)["choices"][0]["logprobs"]["top_logprobs"] == [{"H": -9.0}, {"i": -13.125}]


def test_logprobs_of_a_character_of_several_tokens_join_to_it() -> None:
    with serving(saying("aé😀b")) as client:
        (choice,) = client.ask(logprobs=True)["choices"]
        entries = choice["logprobs"]["content"]
        assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == "aé😀b"
        assert [entry["token"] for entry in entries] == [
            "a",
            r"\xc3",
            r"\xa9",
            r"\xf0",
            r"\x9f",
            r"\x98",
            r"\x80",
            "b",
        ]
        (choice,) = client.ask(TEXT, logprobs=0)["choices"]
        assert choice["logprobs"]["tokens"][:3] == ["a", r"bytes:\xc3", r"bytes:\xa9"]
        assert choice["logprobs"]["text_offset"] == [0, 1, 1, 2, 2, 2, 2, 3]


@pytest.mark.parametrize(
    "parts",
    [
        ("<think>", "Hm, one.", "</think>", "\n\none"),
        ("on", "<pad>", "e", "<|message|>"),
        ("<think>", "no answer", "</think>", "one\n", "<think>", "x"),
    ],
)
def test_only_the_tokens_of_the_answer_have_logprobs(parts: tuple[str, ...]) -> None:
    with serving(saying(*parts, marks=("<end>", "<think>", "</think>", "<|message|>"))) as client:
        (choice,) = client.ask(logprobs=True)["choices"]
    text = choice["message"]["content"]
    assert text.strip() == "one"
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == text


@pytest.mark.parametrize(
    ("parts", "stop", "text"),
    [
        (("😀\n", "<think>", "x"), "\na", "😀\n"),
        (("a\n", "<think>", "x", "</think>", "\nc"), "\nb", "a\nc"),
        (("a\n<th", "<think>", "x"), "é", "a\n<th<think>x"),
        (("a", "</think>", "\nc"), "ab", "c"),
        (("<think>", "x<th"), None, ""),
    ],
)
def test_marks_inside_held_back_text_keep_text_and_logprobs_equal(
    parts: tuple[str, ...], stop: str | None, text: str
) -> None:
    with serving(saying(*parts)) as client:
        (choice,) = client.ask(logprobs=True, stop=stop)["choices"]
    assert choice["message"]["content"] == text
    written = [byte for entry in choice["logprobs"]["content"] for byte in entry["bytes"]]
    assert bytes(written).decode() == text


def test_text_that_only_begins_like_a_mark_is_answer() -> None:
    text = "a <thin line </ </thinking> <"
    with serving(saying(text)) as client:
        (choice,) = client.ask(logprobs=True)["choices"]
    assert choice["message"]["content"] == text
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == text
