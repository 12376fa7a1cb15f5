"""The length of an answer: the limit of the request, the default of the server, the rest of the context."""

from __future__ import annotations

from typing import Any

import pytest
from conftest_runner import ScriptedBackend
from support.application import CHAT, TEXT, serving

# The prompt of a chat also has tokens for the role and around the content.
PROMPT = "x" * 20
CHAT_PROMPT = len(f"user:{PROMPT};")


def endless(context: int) -> ScriptedBackend:
    """Return a model that never ends by itself."""
    return ScriptedBackend(lambda _: [ord("a")] * 10_000, context_length=context)


def body(path: str, prompt: str = PROMPT) -> dict[str, Any]:
    """Return the body of a request with this prompt."""
    return {"messages": [{"role": "user", "content": prompt}]} if path == CHAT else {"prompt": prompt}


def length(path: str, *, context: int = 100, default: int | None = None, **options: Any) -> int:
    """Return the number of tokens in the answer of an endless model; fail unless a stream has as many."""
    with serving(endless(context), max_tokens=default) as client:
        answer = client.ask(path, **body(path), **options)
        events = client.events(path, **body(path), **options, stream_options={"include_usage": True})
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]][-1] == "length"
    assert events[-1]["usage"] == answer["usage"]
    text = choice["message"]["content"] if path == CHAT else choice["text"]
    assert text == "a" * answer["usage"]["completion_tokens"]
    return len(text)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_max_tokens_of_the_request_limits_the_answer(path: str) -> None:
    assert length(path, max_tokens=7) == 7
    assert length(path, max_tokens=7, default=3) == 7


def test_max_completion_tokens_takes_precedence_over_max_tokens() -> None:
    assert length(CHAT, max_completion_tokens=5, max_tokens=7) == 5
    assert length(CHAT, max_completion_tokens=5) == 5
    assert length(CHAT, max_completion_tokens=None, max_tokens=7) == 7


def test_completions_ignore_max_completion_tokens() -> None:
    assert length(TEXT, max_completion_tokens=5) == 50


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_the_default_limit_is_half_of_the_context(path: str) -> None:
    assert length(path) == 50
    assert length(path, max_tokens=None) == 50


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_the_server_can_set_a_default_limit(path: str) -> None:
    assert length(path, default=3) == 3
    assert length(path, default=1000) == 100 - (CHAT_PROMPT if path == CHAT else len(PROMPT))


@pytest.mark.parametrize(("path", "prompt"), [(CHAT, CHAT_PROMPT), (TEXT, len(PROMPT))])
def test_an_answer_never_exceeds_the_context(path: str, prompt: int) -> None:
    assert length(path, max_tokens=(1 << 31) - 1) == 100 - prompt
    assert length(path, context=prompt + 1) == 1


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_fills_the_context_is_refused(path: str, stream: bool) -> None:
    prompt = CHAT_PROMPT if path == CHAT else len(PROMPT)
    with serving(endless(prompt)) as client:
        error = client.refused(path, **body(path), stream=stream)
        assert error["code"] == "context_length_exceeded"
        assert error["param"] == ("messages" if path == CHAT else "prompt")
        assert f"The prompt has {prompt} tokens, but the model's context has {prompt}" in error["message"]
        client.ask(path, **body(path, "short"))


def test_one_too_long_prompt_of_several_is_refused() -> None:
    with serving(endless(30)) as client:
        assert client.refused(TEXT, prompt=["x", "x" * 40])["code"] == "context_length_exceeded"
        assert client.get("/health").json()["active"] == 0
        assert len(client.ask(TEXT, prompt=["x"] * 8, max_tokens=2)["choices"]) == 8


@pytest.mark.parametrize("value", [0, -5, 1 << 31, 1.5, "7", True, []])
def test_an_invalid_limit_is_refused(value: Any) -> None:
    with serving(endless(100)) as client:
        for name in ("max_tokens", "max_completion_tokens"):
            assert client.refused(CHAT, **{name: value})["param"] == name
        assert client.refused(TEXT, max_tokens=value)["param"] == "max_tokens"
