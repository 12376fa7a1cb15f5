"""Any request body gets a response that the description of the API documents, and never an internal error.

MLXK2_FUZZ multiplies the number of bodies.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from conftest_runner import saying
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.application import CHAT, TEXT, Client, serving
from support.fuzz import EFFORT, HOSTILE_BYTES, HOSTILE_JSON, json_mutations, mutations

from mlxk2.server.openai.chat import ChatBody
from mlxk2.server.openai.completions import CompletionBody

pytestmark = pytest.mark.sampled

SEED = 20_251_123
RICH: dict[str, Any] = {
    "model": "org/scripted",
    "max_tokens": 3,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 7,
    "stop": ["x", "yz"],
    "stream": False,
    "n": 2,
    "logit_bias": {"5": -100, "7": 1.5},
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "user": "me",
    "response_format": {"type": "text"},
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "x-unknown": [1, {"a": None}],
}
BODIES = {
    CHAT: RICH
    | {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}], "name": "me"},
            {"role": "assistant", "content": None, "tool_calls": [], "refusal": None},
            {"role": "user", "content": "Bye"},
        ],
        "max_completion_tokens": 2,
        "logprobs": True,
        "top_logprobs": 2,
    },
    TEXT: RICH | {"prompt": [[1, 2], [3]], "logprobs": 1, "echo": False, "best_of": 1, "suffix": ""},
}
FIELDS = sorted(set(ChatBody.model_fields) | set(CompletionBody.model_fields) | set(RICH))
KEYS = st.text(max_size=4) | st.sampled_from(["role", "content", "type", "text", "include_usage", "5"])
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["user", "text", "assistant", "org/scripted", 0, 1, -1, 2**31, 2**63, 2**64, 1e308, 0.0]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)
EXAMPLES = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40 * EFFORT,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Yield a client that checks each response against the API's description; the model always writes the same."""
    with serving(saying("Hi")) as client:
        yield client


def assert_survives(client: Client, path: str, body: bytes) -> int:
    """Send a body; fail unless it gets a documented response; return the status."""
    status = client.post(path, content=body).status_code
    assert status in (200, 400, 404), body
    return status


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_the_unchanged_bodies_are_valid(client: Client, path: str) -> None:
    assert len(client.ask(path, **BODIES[path])["choices"]) == (2 if path == CHAT else 4)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_hostile_bytes_are_refused(client: Client, path: str) -> None:
    for body in (*HOSTILE_BYTES, *HOSTILE_JSON):
        assert assert_survives(client, path, body) == 400


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_damaged_bytes_get_a_valid_response(client: Client, path: str) -> None:
    whole = json.dumps(BODIES[path]).encode()
    found = [assert_survives(client, path, body) for body in mutations(random.Random(SEED), whole, 75 * EFFORT)]
    assert set(found) >= {200, 400}


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_hostile_values_get_a_valid_response(client: Client, path: str) -> None:
    damaged = json_mutations(random.Random(SEED), BODIES[path], 75 * EFFORT)
    assert 400 in {assert_survives(client, path, body) for body in damaged}


@pytest.mark.parametrize("path", [CHAT, TEXT])
@EXAMPLES
@given(values=st.dictionaries(st.sampled_from(FIELDS), ANY_JSON, max_size=6))
def test_any_values_for_any_fields_get_a_valid_response(client: Client, path: str, values: dict[str, Any]) -> None:
    body = {name: value for name, value in BODIES[path].items() if name in ("messages", "prompt", "max_tokens")}
    assert_survives(client, path, json.dumps(body | values).encode("utf-8", "surrogatepass"))


@EXAMPLES
@given(
    messages=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "role": st.sampled_from(["user", "system", "assistant", "developer", "tool"]) | ANY_JSON,
                "content": st.text()
                | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}))
                | ANY_JSON,
                "name": st.text() | ANY_JSON,
                "tool_calls": ANY_JSON,
                "refusal": ANY_JSON,
            },
        ),
        max_size=4,
    )
)
def test_any_messages_get_a_valid_response(client: Client, messages: list[Any]) -> None:
    body = {"messages": messages, "max_tokens": 2}
    assert_survives(client, CHAT, json.dumps(body).encode())


@EXAMPLES
@given(prompt=st.text() | st.lists(st.text(), max_size=3) | st.lists(st.integers(), max_size=5) | ANY_JSON)
def test_any_prompt_gets_a_valid_response(client: Client, prompt: Any) -> None:
    assert_survives(client, TEXT, json.dumps({"prompt": prompt, "max_tokens": 2}).encode())


@EXAMPLES
@given(text=st.text())
def test_a_stream_with_any_text_ends_with_done(client: Client, text: str) -> None:
    messages = [{"role": "user", "content": text}]
    body = json.dumps({"messages": messages, "stream": True, "stop": text[:1000] or None}, ensure_ascii=False)
    assert client.post(CHAT, content=body.encode()).text.endswith("data: [DONE]\n\n")


@EXAMPLES
@given(
    host=st.text(st.characters(max_codepoint=255, exclude_characters="\0\r\n"), max_size=20),
    origin=st.text(st.characters(max_codepoint=255, exclude_characters="\0\r\n"), max_size=20),
)
def test_any_host_and_origin_get_a_valid_response(client: Client, host: str, origin: str) -> None:
    for headers in ({b"Host": host.encode("latin-1")}, {b"Origin": origin.encode("latin-1")} if origin else {}):
        assert client.get("/v1/models", headers=headers).status_code in (200, 403)
