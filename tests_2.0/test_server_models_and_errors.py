"""The model that a request gets, and the error of every request that can't be answered."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest_runner import ScriptedBackend, saying
from support.application import CHAT, MESSAGES, TEXT, Client, error_of, serving
from support.layouts import CacheDir, chat_model, gguf_model

from mlxk2.cache.index import SETTLED_NS
from mlxk2.cache.store import DEMO_FOLDER, find_cache_dir
from mlxk2.errors import InsufficientMemoryError, ModelError
from mlxk2.server.catalog import Catalog, ServedModel
from mlxk2.server.http.access import Access
from mlxk2.server.messages import ModelKey
from mlxk2.server.openai.fields import UNSUPPORTED_FIELDS


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving(saying("Hi")) as client:
        yield client


# ------------------------------------------------------------------------------------------ error messages of OpenAI

WORDS: list[tuple[dict[str, Any], str | None, str, str]] = [
    (
        {"messages": None},
        "messages",
        "invalid_type",
        "Invalid type for 'messages': expected an array, but got null instead.",
    ),
    (
        {"messages": []},
        "messages",
        "empty_array",
        "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
    ),
    (
        {"messages": [{"content": "hi"}]},
        "messages[0].role",
        "missing_required_parameter",
        "Missing required parameter: 'messages[0].role'.",
    ),
    (
        {"messages": [*MESSAGES, {"role": "user"}]},
        "messages[1].content",
        "missing_required_parameter",
        "Missing required parameter: 'messages[1].content'.",
    ),
    (
        {"messages": [{"role": "bogus", "content": "hi"}]},
        "messages[0].role",
        "invalid_value",
        "Invalid value: 'bogus'. Supported values are: 'system', 'developer', 'user' or 'assistant'.",
    ),
    (
        {"messages": [{"role": "user", "content": 123}]},
        "messages[0].content",
        "invalid_type",
        "Invalid type for 'messages[0].content': expected one of a string or an array, but got an integer instead.",
    ),
    (
        {"messages": ["hi"]},
        "messages[0]",
        "invalid_type",
        "Invalid type for 'messages[0]': expected an object, but got a string instead.",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}]}
            ]
        },
        "messages[0].content[0].type",
        "invalid_value",
        "Invalid value: 'image_url'. Supported values are: 'text'.",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        "missing_required_parameter",
        "Missing required parameter: 'messages[0].content[0].text'.",
    ),
    (
        {"messages": [{"role": "user", "content": []}]},
        "messages[0].content",
        "empty_array",
        "Invalid 'messages[0].content': empty array. Expected an array with minimum length 1, "
        "but got an empty array instead.",
    ),
    (
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
        "messages[0].tool_calls",
        "unsupported_parameter",
        "Unsupported parameter: 'messages[0].tool_calls' is not supported by this server yet.",
    ),
    (
        {"max_completion_tokens": "abc"},
        "max_completion_tokens",
        "invalid_type",
        "Invalid type for 'max_completion_tokens': expected an integer, but got a string instead.",
    ),
    (
        {"max_tokens": 100.0},
        "max_tokens",
        "invalid_type",
        "Invalid type for 'max_tokens': expected an integer, but got a decimal number instead.",
    ),
    (
        {"max_tokens": True},
        "max_tokens",
        "invalid_type",
        "Invalid type for 'max_tokens': expected an integer, but got a boolean instead.",
    ),
    (
        {"max_tokens": 0},
        "max_tokens",
        "integer_below_min_value",
        "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got 0 instead.",
    ),
    (
        {"n": 129},
        "n",
        "integer_above_max_value",
        "Invalid 'n': integer above maximum value. Expected a value <= 128, but got 129 instead.",
    ),
    (
        {"n": 9},
        "n",
        "invalid_value",
        "The request asks for 9 completions, but this server generates at most 8 at once.",
    ),
    (
        {"temperature": 2.5},
        "temperature",
        "decimal_above_max_value",
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 2.5 instead.",
    ),
    (
        {"temperature": -1},
        "temperature",
        "decimal_below_min_value",
        "Invalid 'temperature': decimal below minimum value. Expected a value >= 0, but got -1 instead.",
    ),
    (
        {"top_p": "1"},
        "top_p",
        "invalid_type",
        "Invalid type for 'top_p': expected a decimal, but got a string instead.",
    ),
    (
        {"seed": 1 << 70},
        "seed",
        "integer_above_max_value",
        "Invalid 'seed': integer above maximum value. Expected a value <= 9223372036854775807, "
        "but got 1180591620717411303424 instead.",
    ),
    (
        {"stop": 5},
        "stop",
        "invalid_type",
        "Invalid type for 'stop': expected one of a string or an array, but got an integer instead.",
    ),
    (
        {"stop": ["a", 5]},
        "stop[1]",
        "invalid_type",
        "Invalid type for 'stop[1]': expected a string, but got an integer instead.",
    ),
    (
        {"stop": ""},
        "stop",
        "empty_string",
        "Invalid 'stop': empty string. Expected a string with minimum length 1, but got an empty string instead.",
    ),
    (
        {"stop": ["a"] * 17},
        "stop",
        "array_above_max_length",
        "Invalid 'stop': array too long. Expected an array with maximum length 16, "
        "but got an array with length 17 instead.",
    ),
    (
        {"stop": "x" * 1001},
        "stop",
        "string_above_max_length",
        "Invalid 'stop': string too long. Expected a string with maximum length 1000.",
    ),
    (
        {"logit_bias": {"one": 1}},
        "logit_bias",
        "invalid_value",
        "Invalid 'logit_bias': 'one' is not the id of a token.",
    ),
    (
        {"logit_bias": {"1": 101}},
        "logit_bias",
        "decimal_above_max_value",
        "Invalid 'logit_bias': decimal above maximum value. Expected a value <= 100, but got 101 instead.",
    ),
    (
        {"logit_bias": {str(token): 1 for token in range(10_001)}},
        "logit_bias",
        "object_above_max_properties",
        "Invalid 'logit_bias': too many properties. Expected an object with at most 10000 properties.",
    ),
    (
        {"logit_bias": {"300": 1}},
        "logit_bias",
        "invalid_value",
        "logit_bias names token 300, but the model has 300 tokens.",
    ),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value", "'top_logprobs' is only allowed when 'logprobs' is true."),
    (
        {"top_logprobs": 21, "logprobs": True},
        "top_logprobs",
        "integer_above_max_value",
        "Invalid 'top_logprobs': integer above maximum value. Expected a value <= 20, but got 21 instead.",
    ),
    (
        {"stream_options": {}},
        "stream_options",
        "invalid_value",
        "'stream_options' is only allowed when 'stream' is true.",
    ),
    (
        {"stream": "yes"},
        "stream",
        "invalid_type",
        "Invalid type for 'stream': expected a boolean, but got a string instead.",
    ),
    (
        {"stream": True, "stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
        "invalid_type",
        "Invalid type for 'stream_options.include_usage': expected a boolean, but got an integer instead.",
    ),
    ({"user": {}}, "user", "invalid_type", "Invalid type for 'user': expected a string, but got an object instead."),
    (
        {"model": ""},
        "model",
        "empty_string",
        "Invalid 'model': empty string. Expected a string with minimum length 1, but got an empty string instead.",
    ),
    (
        {"messages": MESSAGES * 2},
        "messages",
        "invalid_value",
        "The model's chat template refuses this conversation: roles must alternate",
    ),
]


@pytest.mark.parametrize(("body", "param", "code", "message"), WORDS, ids=[json.dumps(case[0])[:60] for case in WORDS])
def test_an_invalid_chat_request_is_refused_in_openais_words(
    client: Client, body: Any, param: str, code: str, message: str
) -> None:
    assert client.refused(CHAT, **body) == {
        "message": message,
        "type": "invalid_request_error",
        "param": param,
        "code": code,
    }


PROMPTS: list[tuple[dict[str, Any], str, str, str]] = [
    (
        {"prompt": None},
        "prompt",
        "invalid_type",
        "Invalid type for 'prompt': expected one of a string or an array, but got null instead.",
    ),
    (
        {"prompt": []},
        "prompt",
        "empty_array",
        "Invalid 'prompt': empty array. Expected an array with minimum length 1, but got an empty array instead.",
    ),
    (
        {"prompt": ["a", 1]},
        "prompt[1]",
        "invalid_type",
        "Invalid type for 'prompt[1]': expected a string, but got an integer instead.",
    ),
    (
        {"prompt": [1, -2]},
        "prompt[1]",
        "integer_below_min_value",
        "Invalid 'prompt[1]': integer below minimum value. Expected a value >= 0, but got -2 instead.",
    ),
    (
        {"prompt": [[1], []]},
        "prompt[1]",
        "empty_array",
        "Invalid 'prompt[1]': empty array. Expected an array with minimum length 1, but got an empty array instead.",
    ),
    (
        {"prompt": [[1], ["a"]]},
        "prompt[1][0]",
        "invalid_type",
        "Invalid type for 'prompt[1][0]': expected an integer, but got a string instead.",
    ),
    ({"prompt": [300]}, "prompt", "invalid_value", "The prompt has a token that the model does not know (it has 300)."),
    (
        {"prompt": ""},
        "prompt",
        "invalid_value",
        "The prompt is empty, and the model has no token for the beginning of a text.",
    ),
    (
        {"logprobs": True},
        "logprobs",
        "invalid_type",
        "Invalid type for 'logprobs': expected an integer, but got a boolean instead.",
    ),
    (
        {"prompt": ["a", "b", "c"], "n": 3},
        "n",
        "invalid_value",
        "The request asks for 9 completions, but this server generates at most 8 at once.",
    ),
]


@pytest.mark.parametrize(("body", "param", "code", "message"), PROMPTS, ids=[json.dumps(case[0]) for case in PROMPTS])
def test_an_invalid_completion_request_is_refused_in_openais_words(
    client: Client, body: Any, param: str, code: str, message: str
) -> None:
    assert client.refused(TEXT, **body) == {
        "message": message,
        "type": "invalid_request_error",
        "param": param,
        "code": code,
    }


@pytest.mark.parametrize(("path", "field"), [(CHAT, "messages"), (TEXT, "prompt")])
def test_a_missing_required_parameter_is_refused(client: Client, path: str, field: str) -> None:
    error = error_of(client.post(path, json={}), 400)
    assert (error["message"], error["param"]) == (f"Missing required parameter: '{field}'.", field)


NOT_PARSED = "We could not parse the JSON body of your request: "
NAN = '{"messages": [{"role": "user", "content": "x"}], "top_p": NaN}'


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("{", "invalid_json", NOT_PARSED + "EOF while parsing an object at line 1 column 1."),
        ("", "invalid_json", NOT_PARSED + "EOF while parsing a value at line 1 column 0."),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_json", NOT_PARSED),
        ("[]", "invalid_type", "Invalid type for the body: expected an object, but got an array instead."),
        ("5", "invalid_type", "Invalid type for the body: expected an object, but got an integer instead."),
        (NAN, "invalid_value", "Invalid 'top_p': NaN and Infinity are no JSON."),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(client: Client, content: str, code: str, message: str) -> None:
    error = error_of(client.post(CHAT, content=content), 400)
    assert error["message"].startswith(message)
    assert error["code"] == code


def test_a_long_value_in_an_error_message_is_cut(client: Client) -> None:
    error = client.refused(messages=[{"role": "x" * 5000, "content": "hi"}])
    assert len(error["message"]) < 250


# ------------------------------------------------------------------------------------------------ unsupported fields

ASKING: dict[str, Any] = {
    "audio": {"voice": "alloy"},
    "best_of": 2,
    "echo": True,
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "include_obfuscation": True,
    "modalities": ["text", "audio"],
    "moderation": {"model": "omni-moderation-latest"},
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "service_tier": "flex",
    "store": True,
    "suffix": "end",
    "tool_choice": "required",
    "chat_template": "x",
    "documents": [{}],
    "ebnf": "x",
    "grammar": "x",
    "guided_choice": ["a"],
    "guided_decoding_backend": "x",
    "guided_grammar": "x",
    "guided_json": {},
    "guided_json_object": True,
    "guided_regex": "x",
    "guided_whitespace_pattern": " ",
    "json_schema": {},
    "regex": "x",
    "structured_outputs": {},
    "think": False,
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "verbosity": "low",
    "web_search_options": {},
}
NOTHING_ASKED: dict[str, Any] = {
    "best_of": 1,
    "echo": False,
    "function_call": "none",
    "functions": [],
    "include_obfuscation": False,
    "modalities": ["text"],
    "parallel_tool_calls": False,
    "response_format": {"type": "text"},
    "service_tier": "auto",
    "store": False,
    "suffix": "",
    "tool_choice": "auto",
    "tools": [],
    "verbosity": "medium",
    "documents": [],
    "guided_json_object": False,
}


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("field", ASKING)
def test_an_unsupported_field_is_refused_by_name(client: Client, path: str, field: str) -> None:
    assert client.refused(path, **{field: ASKING[field]}) == {
        "message": f"Unsupported parameter: '{field}' is not supported by this server yet.",
        "type": "invalid_request_error",
        "param": field,
        "code": "unsupported_parameter",
    }


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_an_unsupported_field_with_its_default_is_accepted(client: Client, path: str) -> None:
    client.ask(path, **NOTHING_ASKED)
    client.ask(path, **dict.fromkeys(ASKING))


# ----------------------------------------------------------------------------------- variables of the chat template

OPEN: dict[str, Any] = {"continue_final_message": True}
VARIABLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {"add_generation_prompt": True}),
    "thinking off": ({"enable_thinking": False}, {"enable_thinking": False, "add_generation_prompt": True}),
    "in an object": ({"chat_template_kwargs": {"a": [1]}}, {"a": [1], "add_generation_prompt": True}),
    "twice the same": (
        {"chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": True},
        {"enable_thinking": True, "add_generation_prompt": True},
    ),
    "continued": (OPEN, {"continue_final_message": True, "add_generation_prompt": False}),
    "no new turn": ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
    "null": ({"chat_template_kwargs": None, "continue_final_message": None}, {"add_generation_prompt": True}),
}


@pytest.mark.parametrize(("fields", "variables"), VARIABLES.values(), ids=VARIABLES)
def test_the_chat_template_gets_the_variables_of_the_request(fields: dict[str, Any], variables: dict[str, Any]) -> None:
    model = saying("hi")
    with serving(model) as client:
        client.ask(**fields)
    assert model.tokenizer.variables == variables


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({**OPEN, "add_generation_prompt": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"continue_final_message": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": False}, "enable_thinking"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"enable_thinking": "no"}, "enable_thinking"),
    ],
)
def test_invalid_variables_for_the_chat_template_are_refused(
    client: Client, fields: dict[str, Any], param: str
) -> None:
    assert client.refused(**fields)["param"] == param


def test_an_answer_that_continues_a_message_keeps_its_first_space() -> None:
    with serving(saying(" is")) as client:
        assert client.ask(**OPEN)["choices"][0]["message"]["content"] == " is"


def test_too_many_messages_are_refused_before_they_are_validated(client: Client) -> None:
    many = [{"role": "user", "content": "hi"}]
    assert client.refused(messages=many * 70_000)["code"] == "array_above_max_length"
    assert client.refused(messages=many * 5_000)["code"] == "context_length_exceeded"


def test_an_unsupported_stream_option_is_refused_by_name(client: Client) -> None:
    error = client.refused(stream=True, stream_options={"include_obfuscation": True})
    assert (error["param"], error["code"]) == ("stream_options.include_obfuscation", "unsupported_parameter")
    usage = client.events(stream_options={"include_obfuscation": False, "include_usage": True})[-1]["usage"]
    assert usage["completion_tokens"] == 3


def test_fields_for_other_services_are_ignored(client: Client) -> None:
    notes: dict[str, Any] = {
        "metadata": {"a": "b"},
        "safety_identifier": "a",
        "prompt_cache_key": "a",
        "prompt_cache_retention": "24h",
        "prompt_cache_options": {"ttl": "30m"},
    }
    assert client.ask(**notes, service_tier="default")["choices"] == client.ask()["choices"]


def test_the_tests_cover_all_unsupported_fields() -> None:
    in_messages = {"refusal", "tool_call_id", "tool_calls"}
    assert set(UNSUPPORTED_FIELDS) == set(ASKING) | set(NOTHING_ASKED) | in_messages


# ------------------------------------------------------------------------------------------------------------ models


def test_models_of_the_cache_and_the_demo_are_listed(cache_dir: CacheDir) -> None:
    cache_dir.add("mlx-community/Small", chat_model(max_position_embeddings=512, model_type="llama"))
    cache_dir.add("org/gguf", gguf_model())
    with serving(pinned=False) as client:
        found = client.get("/v1/models").json()
        assert found["object"] == "list"
        assert {entry["id"]: entry["context_length"] for entry in found["data"]} == {
            "demo": 4096,
            "mlx-community/Small": 512,
        }
        for entry in found["data"]:
            assert client.get(f"/v1/models/{entry['id']}").json() == entry
            assert list(entry) == ["id", "object", "created", "owned_by", "context_length"]
            assert entry["object"] == "model"
        assert {entry["owned_by"] for entry in found["data"]} == {"mlxk2", "mlx-community"}


@pytest.mark.parametrize(("override", "lengths"), [(None, [4096, None]), (77, [77, 77])])
def test_an_unknown_context_is_null_and_can_be_set(
    cache_dir: CacheDir, override: int | None, lengths: list[int | None]
) -> None:
    cache_dir.add("mlx-community/Silent", chat_model(max_position_embeddings=None))
    assert [
        entry.context_length for entry in Catalog(str(cache_dir.path), context_length=override).entries()
    ] == lengths


@pytest.mark.parametrize("name", ["org/gguf", "org/none", "small", "/etc", "mlx-community/Small/x"])
def test_an_unlisted_model_is_404(cache_dir: CacheDir, name: str) -> None:
    cache_dir.add("mlx-community/Small", chat_model())
    cache_dir.add("org/gguf", gguf_model())
    with serving(pinned=False) as client:
        error = error_of(client.get(f"/v1/models/{name}"), 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize("name", ["org/none", "/etc", "../x", "./x", "~/x"])
def test_a_request_for_a_missing_model_is_404(cache_dir: CacheDir, name: str) -> None:  # noqa: ARG001 - isolates
    with serving(pinned=False) as client:
        error = client.refused(model=name, status=404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert name in error["message"]


@pytest.mark.parametrize("name", ["org//x", "a/../b", "x" * 97, "org\\x", "a\u0000b"])
def test_an_invalid_model_name_is_refused(cache_dir: CacheDir, name: str) -> None:  # noqa: ARG001 - isolates
    with serving(pinned=False) as client:
        assert client.refused(model=name)["param"] == "model"


def test_a_name_that_matches_several_models_is_ambiguous(cache_dir: CacheDir) -> None:
    cache_dir.add("org/Small-a", chat_model())
    cache_dir.add("org/Small-b", chat_model())
    with serving(pinned=False) as client:
        error = client.refused(model="small", status=404)
    assert (error["code"], error["param"]) == ("ambiguous_match", "model")
    assert "org/Small-a, org/Small-b" in error["message"]


def test_a_request_without_a_model_is_refused_if_none_is_loaded(cache_dir: CacheDir) -> None:  # noqa: ARG001 - isolates
    with serving(pinned=False) as client:
        error = client.refused()
    assert (error["message"], error["param"]) == ("The request names no model, and none is loaded.", "model")


class Counting(Catalog):
    """A catalog that counts its scans, which wait for `gate`, and the cancelled ones."""

    def __init__(self) -> None:
        super().__init__(find_cache_dir(os.environ))
        self.gate = threading.Event()
        self.begun = self.called_off = 0

    def entries(self, cancelled: Callable[[], bool] = bool) -> list[ServedModel]:
        """Scan all models."""
        self.begun += 1
        while not self.gate.wait(0.01):
            if cancelled():
                self.called_off += 1
                return []
        return super().entries(cancelled)


def test_one_scan_of_the_cache_serves_all_waiting_requests(cache_dir: CacheDir) -> None:
    cache_dir.add("org/Small", chat_model())

    async def ask() -> None:
        catalog = Counting()
        asking = [asyncio.create_task(catalog.all()) for _ in range(200)]
        await asyncio.sleep(0.02)
        for task in asking[:150]:
            task.cancel()
        # Other lookups work during the scan.
        assert (await catalog.search("org/Small")).name == "org/Small"
        catalog.gate.set()
        for task in asking[150:]:
            assert [entry.name for entry in await task] == ["demo", "org/Small"]
        assert (catalog.begun, catalog.called_off) == (1, 0)

    asyncio.run(asyncio.wait_for(ask(), 30))


def test_a_scan_of_the_cache_without_waiting_requests_is_cancelled(cache_dir: CacheDir) -> None:  # noqa: ARG001 - isolates
    async def ask() -> None:
        catalog = Counting()
        for _ in range(3):
            asking = [asyncio.create_task(catalog.all()) for _ in range(50)]
            await asyncio.sleep(0.02)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        while catalog.called_off < 3:
            await asyncio.sleep(0.01)
        catalog.gate.set()
        assert [entry.name for entry in await catalog.all()] == ["demo"]
        assert catalog.begun == 4

    asyncio.run(asyncio.wait_for(ask(), 30))


def test_changes_of_the_cache_are_seen(cache_dir: CacheDir) -> None:
    model = cache_dir.add("org/a", chat_model())
    # Younger models are not remembered.
    time.sleep(SETTLED_NS / 1e9 + 0.1)
    with serving(pinned=False) as client:

        def names() -> list[str]:
            return [entry["id"] for entry in client.get("/v1/models").json()["data"]]

        for _ in range(2):
            assert names() == ["demo", "org/a"]
        cache_dir.add("org/b", chat_model())
        assert names() == ["demo", "org/a", "org/b"]
        client.refused(model="org/c", status=404)
        (model / "config.json").unlink()
        assert names() == ["demo", "org/b"]


def test_a_model_that_mlx_cannot_run_is_refused(cache_dir: CacheDir) -> None:
    cache_dir.add("org/gguf", gguf_model())
    with serving(pinned=False) as client:
        error = client.refused(model="org/gguf")
    assert (error["code"], error["param"]) == ("model_not_runnable", "model")
    assert "requires MLX" in error["message"]


def test_demo_always_means_the_model_of_the_package(cache_dir: CacheDir, tmp_path: Path) -> None:
    own = ModelKey("demo", str(tmp_path / "demo"))
    catalog = Catalog(str(cache_dir.path), ("./demo", own))
    assert catalog.known("demo", own) is None
    shipped = catalog.find("demo")
    assert shipped == ModelKey("demo", DEMO_FOLDER)
    assert catalog.known("demo", shipped) == shipped
    assert catalog.known("./demo", shipped) == catalog.default(shipped) == own
    assert [entry.name for entry in catalog.entries()] == ["demo"]
    assert catalog.entry("demo").context_length == 4096


@pytest.mark.parametrize("typed", ["demo", DEMO_FOLDER])
def test_demo_as_start_model_keeps_its_adapter(cache_dir: CacheDir, typed: str) -> None:
    target = ModelKey("demo", DEMO_FOLDER, "adapter")
    assert Catalog(str(cache_dir.path), (typed, target)).known("demo", None) == target


def test_every_name_of_the_start_model_uses_it() -> None:
    with serving(saying("Hi")) as client:
        for named in ({}, {"model": None}, {"model": "scripted"}, {"model": "org/scripted"}):
            assert client.ask(**named)["model"] == "org/scripted"


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (InsufficientMemoryError("It needs 9.0GB of memory, but there are only 8.0GB."), 400, "insufficient_memory"),
        (ModelError("It can't be loaded."), 500, "operation"),
    ],
)
def test_a_failed_load_is_an_error_with_its_status(failure: ModelError, status: int, code: str) -> None:
    with serving(failure=failure) as client:
        error = client.refused(status=status)
        assert (error["message"], error["code"]) == (failure.message, code)
        assert client.get("/health").json()["model"] is None


def test_a_generation_error_affects_only_its_own_request() -> None:
    model = ScriptedBackend(lambda request: [72, RuntimeError("no")] if 33 in request.prompt else [72])
    with serving(model) as client:
        error = client.refused(messages=[{"role": "user", "content": "!"}], status=500)
        assert error["message"] == "Generation failed: no"
        assert client.ask()["choices"][0]["message"]["content"] == "H"


# ---------------------------------------------------------------------------------------------------- paths and access


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", "/v1/models/demo", "GET or HEAD"),
        ("POST", "/health", "GET or HEAD"),
        ("POST", "/page/app.js", "GET or HEAD"),
    ],
)
def test_a_wrong_method_is_405_and_names_the_right_one(client: Client, method: str, path: str, allowed: str) -> None:
    response = client.request(method, path)
    error = error_of(response, 405)
    assert error["code"] == "method_not_allowed"
    assert error["message"] == f"The path '{path}' takes {allowed}, not {method}."
    assert response.headers["allow"] == allowed.replace(" or ", ", ")


@pytest.mark.parametrize("path", ["/v1", "/v1/embeddings", "/api/tags", "/page/none", "/" + "x" * 5000])
def test_an_unknown_path_is_404_and_names_the_known_paths(client: Client, path: str) -> None:
    error = error_of(client.post(path) if path == "/v1/embeddings" else client.get(path), 404)
    assert error["code"] == "not_found"
    message = error["message"]
    assert path[:100] in message and len(message) < 500
    for known in ("GET /v1/models", "GET /v1/models/{model}", f"POST {CHAT}", "POST /v1/completions"):
        assert known in message
    assert ("GET /health" in message) == (not path.startswith("/v1"))


def test_a_too_large_body_is_refused(client: Client) -> None:
    error = error_of(client.post(CHAT, content=b" " * ((32 << 20) + 1)), 413)
    assert error["code"] == "body_too_large"


def test_a_wrong_key_is_refused() -> None:
    with serving(saying("Hi"), access=Access(api_key="secret")) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            response = client.post(CHAT, json={"messages": MESSAGES}, headers=headers)
            assert error_of(response, 401)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        assert client.post(CHAT, json={"messages": MESSAGES}, headers={"Authorization": "Bearer secret"}).is_success
        assert client.get("/health").is_success


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, "invalid_host"),
        ({"Origin": "http://evil.example"}, "invalid_origin"),
    ],
)
def test_a_foreign_host_or_origin_is_refused(client: Client, headers: dict[str, str], code: str) -> None:
    assert error_of(client.get("/v1/models", headers=headers), 403)["code"] == code
