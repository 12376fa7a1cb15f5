"""The official, unchanged client of OpenAI's API against the real server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from support.serving import Server
from support.tiny_models import BABBLE, say, write_chain

import mlxk2

pytestmark = pytest.mark.e2e

KEY = "not-a-secret"
FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
COUNT: Any = [{"role": "user", "content": "Count from 1 to 100."}]
THINK: Any = [{"role": "system", "content": "Think before you answer."}, {"role": "user", "content": "What is 3 + 4?"}]
PARIS = "The capital of France is Paris."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    key = {"MLXK2_API_KEY": KEY}
    options = ("--model", "demo", "--max-concurrent", "8", "--max-queue", "64")
    with Server(*options, home=tmp_path_factory.mktemp("home"), environment=key) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def demo_vocabulary() -> dict[str, int]:
    """Return the ids of the demo model's tokens."""
    path = Path(mlxk2.__file__).parent / "demo" / "tokenizer.json"
    return dict(json.loads(path.read_bytes())["model"]["vocab"])


# ------------------------------------------------------------------------------------------------------------- chats


def test_a_chat_completion_has_the_documented_fields(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=FRANCE, temperature=0)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", PARIS, "stop")
    assert (answer.object, answer.model) == ("chat.completion", "demo")
    assert abs(answer.created - time.time()) < 60
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None


def test_a_chat_stream_joins_to_the_whole_answer(client: OpenAI) -> None:
    with client.chat.completions.create(model="demo", messages=FRANCE, temperature=0, stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == PARIS
    assert (chunks[0].choices[0].delta.role, chunks[-1].choices[0].finish_reason) == ("assistant", "stop")
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_the_stream_helper_of_the_client_works(client: OpenAI) -> None:
    with client.chat.completions.stream(model="demo", messages=FRANCE, temperature=0) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == PARIS
    assert answer.choices[0].finish_reason == "stop"


def test_a_stream_ends_with_usage_if_asked(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=FRANCE, temperature=0)
    *chunks, last = client.chat.completions.create(
        model="demo", messages=FRANCE, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == []
    assert last.usage is not None and whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks)
    # The client keeps this extension of the API; other responses do not have it.
    timings = (last.model_extra or {})["timings"]
    assert timings["predicted_n"] == last.usage.completion_tokens - 1
    assert timings["predicted_per_second"] > 0
    assert timings["time_to_first_token_ms"] > 0
    assert not any("timings" in (other.model_extra or {}) for other in (whole, *chunks))


def test_reasoning_has_a_field_of_its_own(client: OpenAI) -> None:
    message = client.chat.completions.create(model="demo", messages=THINK, temperature=0).choices[0].message
    assert message.content == "3 + 4 = 7."
    reasoning = message.model_extra["reasoning_content"] if message.model_extra else ""
    assert reasoning.startswith("The user asks for a sum.")
    deltas = [
        chunk.choices[0].delta
        for chunk in client.chat.completions.create(model="demo", messages=THINK, temperature=0, stream=True)
    ]
    streamed = "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas)
    assert (streamed, "".join(delta.content or "" for delta in deltas)) == (reasoning, "3 + 4 = 7.")


def test_several_answers_differ_and_repeat_with_the_same_seed(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "demo",
        "messages": COUNT,
        "n": 4,
        "seed": 7,
        "temperature": 2.0,
        "max_tokens": 12,
    }
    texts = [choice.message.content for choice in client.chat.completions.create(**asked).choices]
    assert len(set(texts)) > 1
    assert [choice.message.content for choice in client.chat.completions.create(**asked).choices] == texts
    streamed = [""] * 4
    for chunk in client.chat.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts
    alone = client.chat.completions.create(**{**asked, "n": 1, "seed": 9}).choices[0].message.content
    assert alone == texts[2]


@pytest.mark.parametrize("stop", ["of Fra", ["Paris", "capital of"], "l"])
def test_stop_strings_work_across_tokens(client: OpenAI, stop: Any) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": FRANCE, "temperature": 0, "stop": stop}
    expected = min((PARIS.split(text)[0] for text in ([stop] if isinstance(stop, str) else stop)), key=len)
    (choice,) = client.chat.completions.create(**asked).choices
    assert (choice.message.content, choice.finish_reason) == (expected, "stop")
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_the_token_limit_gives_finish_reason_length(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=COUNT, temperature=0, max_completion_tokens=5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 5


def test_logprobs_join_to_the_answer(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": THINK, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    (choice,) = client.chat.completions.create(**asked).choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    entries = choice.logprobs.content
    assert "".join(entry.token for entry in entries) == choice.message.content == "3 + 4 = 7."
    assert b"".join(bytes(entry.bytes or []) for entry in entries).decode() == choice.message.content
    for entry in entries:
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        # At temperature 0, the likeliest token is the one that was chosen.
        assert (entry.top_logprobs[0].token, values[0]) == (entry.token, entry.logprob)
        assert len(values) == 3 and all(value <= 0 for value in values)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    streamed = [entry for part in parts for entry in part.content or []]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]
    assert [entry.logprob for entry in streamed] == pytest.approx([entry.logprob for entry in entries])


def test_logit_bias_can_ban_a_token(client: OpenAI) -> None:
    vocabulary = demo_vocabulary()
    asked: dict[str, Any] = {"model": "demo", "prompt": "The capital", "temperature": 0, "max_tokens": 1}
    assert client.completions.create(**asked).choices[0].text == " of"
    assert client.completions.create(**asked, logit_bias={str(vocabulary["Ġof"]): -100}).choices[0].text != " of"


# ------------------------------------------------------------------------------------------------------- completions


def test_a_completion_continues_its_prompt(client: OpenAI) -> None:
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nThe capital"
    answer = client.completions.create(model="demo", prompt=prompt, temperature=0, logprobs=2)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (" of France is Paris.", "stop")
    logprobs = choice.logprobs
    assert logprobs is not None and logprobs.tokens and logprobs.text_offset
    assert logprobs.top_logprobs and logprobs.token_logprobs
    assert "".join(logprobs.tokens) == choice.text
    starts = zip(logprobs.text_offset, logprobs.tokens, strict=True)
    assert all(choice.text[start:].startswith(token) for start, token in starts)
    assert [
        top[token] for top, token in zip(logprobs.top_logprobs, logprobs.tokens, strict=True)
    ] == logprobs.token_logprobs
    asked: dict[str, Any] = {"model": "demo", "prompt": prompt, "temperature": 0, "logprobs": 0}
    stopped = client.completions.create(**asked, stop="nce is").choices[0]
    assert stopped.text == " of Fra"
    assert stopped.logprobs is not None and stopped.logprobs.tokens == [" of", " ", "France"]


def test_a_completion_stream_joins_to_the_whole_text(client: OpenAI) -> None:
    whole = client.completions.create(model="demo", prompt="The capital", temperature=0, max_tokens=8)
    stream = client.completions.create(model="demo", prompt="The capital", temperature=0, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_prompts_can_be_token_ids_and_several(client: OpenAI) -> None:
    vocabulary = demo_vocabulary()
    tokens = [vocabulary["The"], vocabulary["Ġcapital"]]
    asked: dict[str, Any] = {"model": "demo", "temperature": 0, "max_tokens": 1}
    assert client.completions.create(**asked, prompt=tokens).choices[0].text == " of"
    answer = client.completions.create(**asked, prompt=[tokens, tokens], n=2)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(number, " of") for number in range(4)]


# ------------------------------------------------------------------------------------------------------------ models


def test_models_can_be_listed_and_retrieved(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("demo", "model", "mlxk2")
    assert model.model_extra == {"context_length": 4096}
    assert client.models.retrieve("demo") == model


# ------------------------------------------------------------------------------------------------------------ errors

Ask = Callable[[OpenAI], Any]


@pytest.mark.parametrize(
    ("ask", "error", "status", "code", "param", "message"),
    [
        (
            lambda c: c.chat.completions.create(model="demo", messages=FRANCE, n=0),
            openai.BadRequestError,
            400,
            "integer_below_min_value",
            "n",
            "Expected a value >= 1, but got 0 instead.",
        ),
        (
            lambda c: c.chat.completions.create(model="demo", messages=[{"role": "user", "content": "x " * 5000}]),
            openai.BadRequestError,
            400,
            "context_length_exceeded",
            "messages",
            "context has 4096",
        ),
        (
            lambda c: c.chat.completions.create(model="demo", messages=FRANCE, response_format={"type": "json_object"}),
            openai.BadRequestError,
            400,
            "unsupported_parameter",
            "response_format",
            "not supported",
        ),
        (
            lambda c: c.chat.completions.create(model="demo", messages=FRANCE, n=9),
            openai.BadRequestError,
            400,
            "invalid_value",
            "n",
            "at most 8 at once",
        ),
        (
            lambda c: c.completions.create(model="demo", prompt=""),
            openai.BadRequestError,
            400,
            "invalid_value",
            "prompt",
            "no token for the beginning of a text",
        ),
        (
            lambda c: c.with_options(api_key="wrong").models.list(),
            openai.AuthenticationError,
            401,
            "invalid_api_key",
            None,
            "API key",
        ),
        (
            lambda c: c.with_options(default_headers={"Host": "evil.example"}).models.list(),
            openai.PermissionDeniedError,
            403,
            "invalid_host",
            None,
            "evil.example",
        ),
        (
            lambda c: c.chat.completions.create(model="org/none", messages=FRANCE),
            openai.NotFoundError,
            404,
            "model_not_found",
            "model",
            "org/none",
        ),
        (lambda c: c.models.retrieve("none"), openai.NotFoundError, 404, "model_not_found", "model", "none"),
        (
            lambda c: c.embeddings.create(model="demo", input="x"),
            openai.NotFoundError,
            404,
            "not_found",
            None,
            "POST /v1/chat/completions",
        ),
        (
            lambda c: c.chat.completions.create(model="demo", messages=[{"role": "user", "content": "x" * (33 << 20)}]),
            openai.APIStatusError,
            413,
            "body_too_large",
            None,
            "32 MB",
        ),
    ],
)
def test_errors_have_the_class_status_code_and_param_that_clients_expect(
    client: OpenAI, ask: Ask, error: type[openai.APIStatusError], status: int, code: str, param: str, message: str
) -> None:
    with pytest.raises(error) as raised:
        ask(client)
    fault = raised.value
    assert (fault.status_code, fault.code, fault.param) == (status, code, param)
    assert message in fault.message
    assert fault.type == "invalid_request_error"


def test_the_client_retries_when_the_server_is_full(tmp_path: Path) -> None:
    write_chain(tmp_path / "babble", BABBLE, context=4096)
    options = ("--model", str(tmp_path / "babble"), "--max-concurrent", "1", "--max-queue", "0")
    with Server(*options, home=tmp_path) as server, OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        asked: dict[str, Any] = {"model": "babble", "messages": FRANCE}
        with client.chat.completions.create(**asked, stream=True) as stream:
            next(iter(stream))
            with pytest.raises(openai.InternalServerError) as raised:
                client.with_options(max_retries=0).chat.completions.create(**asked)
            assert (raised.value.status_code, raised.value.code) == (503, "server_busy")
            assert raised.value.response.headers["retry-after"] == "1"
        # The stream is closed, so a retry, which the client does by default, gets an answer.
        assert client.chat.completions.create(**asked, max_tokens=2).choices[0].message.content


def test_a_client_that_times_out_frees_its_slot(tmp_path: Path) -> None:
    write_chain(tmp_path / "babble", BABBLE, context=1 << 20)
    options = ("--model", str(tmp_path / "babble"), "--max-concurrent", "1")
    with Server(*options, home=tmp_path) as server:
        with OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            asked: dict[str, Any] = {"model": "babble", "messages": FRANCE}
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.5).chat.completions.create(**asked)
            assert client.with_options(timeout=30).chat.completions.create(**asked, max_tokens=2).usage
        assert httpx.get(f"{server.url}/health").json()["active"] == 0


# -------------------------------------------------------------------------------------------- other uses of the client


def test_raw_responses_have_the_right_content_types(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="demo", messages=FRANCE, temperature=0)
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].message.content == PARIS
    with client.chat.completions.with_streaming_response.create(model="demo", messages=FRANCE, stream=True) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


def test_twenty_concurrent_requests_succeed(server: Server) -> None:
    async def ask() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
            return await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="demo", messages=[{"role": "user", "content": f"What is {n} + 4?"}], temperature=0
                    )
                    for n in range(20)
                )
            )

    answers = asyncio.run(ask())
    assert [answer.choices[0].message.content for answer in answers][3] == "3 + 4 = 7."
    assert len({answer.id for answer in answers}) == 20


def test_the_bytes_of_a_stream_are_well_formed_events(server: Server) -> None:
    asked = {"messages": FRANCE, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=asked, headers=headers) as response:
        text = response.read().decode()
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    *events, last, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert chunks[0]["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert json.loads(last.removeprefix("data: "))["choices"] == []
    head = {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}
    assert len(head) == 1


# --------------------------------------------------------------------------------- tokens that the demo does not have


def test_characters_of_several_tokens_and_stop_strings_inside_tokens_work(tmp_path: Path) -> None:
    write_chain(tmp_path / "says", say("Ġa", "ðŁ", "ĺ", "Ģ", "Ġbcd", "ef"))
    with (
        Server("--model", str(tmp_path / "says"), home=tmp_path) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
    ):
        asked: dict[str, Any] = {"model": "says", "messages": FRANCE, "temperature": 0, "logprobs": True}
        for stop, text in ((None, "a😀 bcdef"), ("de", "a😀 bc"), ("😀", "a")):
            (choice,) = client.chat.completions.create(**asked, stop=stop).choices
            assert choice.message.content == text
            assert choice.logprobs is not None and choice.logprobs.content is not None
            written = b"".join(bytes(entry.bytes or []) for entry in choice.logprobs.content).decode()
            # mlx-lm omits the first space of a text; the token in which a stop string begins is reported whole.
            assert written == {"a😀 bc": " a😀 bcd"}.get(text, f" {text}")
