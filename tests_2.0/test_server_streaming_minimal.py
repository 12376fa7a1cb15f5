"""Streams, on scripted models: the events, their order, and that they add up to the whole response."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from conftest_runner import Script, ScriptedBackend, ScriptedBatch, saying
from hypothesis import given, settings
from hypothesis import strategies as st
from support.application import CHAT, TEXT, Client, serving

from mlxk2.errors import ModelUnhealthyError
from mlxk2.runner.request import GenerationRequest
from mlxk2.runner.sequences import Reading, Step

SCRIPTS = [
    ("Hello, wörld 😀.\n",),
    ("<think>", "Hm.\n", "</think>", "\n\n", "Hi"),
    ("<think>", "never ends"),
    ("<", "thin", "k of it>"),
    ("",),
    ("half a \N{GRINNING FACE}".encode()[:-1],),
]


def fold_events(events: list[Any], path: str) -> list[dict[str, Any]]:
    """Return the choices that a stream's events add up to, in the form of a whole response."""
    found: dict[int, dict[str, Any]] = {}
    for choice in (choice for event in events for choice in event["choices"]):
        into = found.setdefault(choice["index"], {"text": "", "reasoning": "", "logprobs": None, "reason": None})
        part = choice["delta"] if path == CHAT else {"content": choice["text"]}
        into["text"] += part.get("content") or ""
        into["reasoning"] += part.get("reasoning_content") or ""
        into["reason"] = choice["finish_reason"] or into["reason"]
        for key, values in (choice["logprobs"] or {}).items():
            if values is not None:
                into["logprobs"] = into["logprobs"] or {}
                into["logprobs"].setdefault(key, []).extend(values)
    return [found[number] for number in sorted(found)]


def whole(answer: Any, path: str) -> list[dict[str, Any]]:
    """Return the choices of a whole response in the same form."""
    return [
        {
            "text": choice["message"]["content"] if path == CHAT else choice["text"],
            "reasoning": choice["message"].get("reasoning_content", "") if path == CHAT else "",
            "logprobs": {k: v for k, v in (choice["logprobs"] or {}).items() if v} or None,
            "reason": choice["finish_reason"],
        }
        for choice in answer["choices"]
    ]


def assert_alike(client: Client, path: str, **body: Any) -> None:
    """Fail unless the stream adds up to the whole response."""
    streamed = fold_events(client.events(path, **body), path)
    for choice in streamed:
        choice["logprobs"] = {k: v for k, v in (choice["logprobs"] or {}).items() if v} or None
    assert streamed == whole(client.ask(path, **body), path)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_stream_adds_up_to_the_whole_response(path: str, script: tuple[Any, ...]) -> None:
    with serving(saying(*script)) as client:
        assert_alike(client, path)
        assert_alike(client, path, n=2, logprobs=True if path == CHAT else 2)
        assert_alike(client, path, stop=["o", "k of"], max_tokens=7)


def bytes_of(logprobs: Any) -> bytes:
    """Return the bytes of the tokens in logprobs of either form."""
    if "content" in logprobs:
        return bytes(byte for entry in logprobs["content"] for byte in entry["bytes"])
    parts = [token.removeprefix("bytes:") for token in logprobs.get("tokens", [])]
    return b"".join(bytes.fromhex(part.replace(r"\x", "")) if r"\x" in part else part.encode() for part in parts)


PARTS = ["<think>", "</think>", "[THINK]", "[/THINK]", "ab", "<th", "é", "\n", "b", "<pad>"]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(PARTS), max_size=8),
    st.sampled_from([None, "b", "ab\n", "é"]),
    st.sampled_from([CHAT, TEXT]),
)
def test_a_stream_adds_up_for_any_text_and_stop_string(script: list[str], stop: str | None, path: str) -> None:
    with serving(saying(*script, marks=("<end>", "<think>", "</think>", "[THINK]", "[/THINK]"))) as client:
        logprobs = {"logprobs": True} if path == CHAT else {"logprobs": 1}
        assert_alike(client, path, stop=stop, **logprobs)
        (choice,) = whole(client.ask(path, stop=stop, **logprobs), path)
        assert stop is None or stop not in choice["text"]
        assert bytes_of(choice["logprobs"] or {}).decode() == choice["text"]


def test_events_of_a_chat_have_the_documented_form() -> None:
    with serving(saying("Hi")) as client:
        events = client.events()
    head = {key: events[0][key] for key in ("id", "created", "model", "object")}
    assert head["object"] == "chat.completion.chunk"
    assert all({key: event[key] for key in head} == head for event in events)
    choices = [choice for event in events for choice in event["choices"]]
    assert all(list(choice) == ["index", "delta", "logprobs", "finish_reason"] for choice in choices)
    first, *parts, last = choices
    assert (first["delta"], last["delta"]) == ({"role": "assistant", "content": ""}, {})
    # A slow reader gets all new text in one event.
    assert "".join(part["delta"].pop("content") for part in parts) == "Hi"
    assert all(part["delta"] == {} for part in parts)
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert all("usage" not in event for event in events)


def test_events_of_a_completion_have_the_documented_form() -> None:
    with serving(saying("Hi")) as client:
        events = client.events(TEXT)
    assert {event["object"] for event in events} == {"text_completion"}
    assert len({event["id"] for event in events}) == 1
    choices = [choice for event in events for choice in event["choices"]]
    assert all(list(choice) == ["index", "text", "logprobs", "finish_reason"] for choice in choices)
    assert "".join(choice["text"] for choice in choices) == "Hi"
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]


@pytest.mark.parametrize(("path", "prompt_tokens"), [(CHAT, 11), (TEXT, 5)])
def test_usage_is_the_last_event_if_asked(path: str, prompt_tokens: int) -> None:
    with serving(saying("Hi")) as client:
        *events, last = client.events(path, n=2, stream_options={"include_usage": True})
        without = client.events(path, stream_options={"include_usage": False})
    assert all(event["usage"] is None for event in events)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 6,
        "total_tokens": prompt_tokens + 6,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert last["object"] == events[0]["object"]
    assert all("usage" not in event for event in without)


def test_reasoning_comes_before_the_answer_in_its_own_field() -> None:
    with serving(saying("<think>", "Hm.", "</think>", "Hi")) as client:
        deltas = [event["choices"][0]["delta"] for event in client.events()]
    kinds = ["reasoning_content" if "reasoning_content" in delta else "content" for delta in deltas[1:-1]]
    assert kinds == sorted(kinds, reverse=True)
    assert set(kinds) == {"reasoning_content", "content"}


def test_a_generation_error_is_an_event_in_a_stream_and_else_a_status() -> None:
    broken = [ScriptedBackend(lambda _: [RuntimeError("no")]) for _ in range(2)]
    with serving(*broken) as client:
        assert client.refused(status=500)["message"] == "Generation failed: no"
        assert [event["error"]["message"] for event in client.events()] == ["Generation failed: no"]
        assert client.refused(stream=True, n=0)["param"] == "n"
        assert client.refused(stream=True, messages=[{"role": "user", "content": "x" * 5000}])["param"] == "messages"
        assert client.refused(TEXT, stream=True, prompt=[299, 300])["param"] == "prompt"


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_load_error_is_an_event_in_a_stream(path: str) -> None:
    with serving(failure=ModelUnhealthyError("damaged")) as client:
        assert client.refused(path)["code"] == "model_unhealthy"
        assert [event["error"]["code"] for event in client.events(path)] == ["model_unhealthy"]


class Slow(ScriptedBatch):
    """Sequences whose prompt takes a moment."""

    def insert(
        self, sequence_id: int, request: GenerationRequest, max_tokens: int, completion: Sequence[int] = ()
    ) -> None:
        """Add a sequence after a pause."""
        time.sleep(0.3)
        super().insert(sequence_id, request, max_tokens, completion)


class SlowlyRead(ScriptedBatch):
    """Sequences whose prompt is read in many small steps."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self._steps = 60

    def next(self) -> list[Step | Reading]:
        """Return the progress of the prompts, then tokens."""
        if not self._steps:
            return super().next()
        self._steps -= 1
        time.sleep(0.005)
        return [Reading(sequence_id, 1, 0, 1, 0.005) for sequence_id in self._sequences]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("late", ["prompt", "answer", "reading"])
def test_a_stream_sends_empty_events_until_its_text_comes(path: str, late: str) -> None:
    prompt: dict[str, Any] = {"delay": 0.3, "stream_seconds": 0.05} if late == "prompt" else {}
    batch = {"prompt": ScriptedBatch, "answer": Slow, "reading": SlowlyRead}[late]
    with serving(saying("Hello", batch=batch), heartbeat=0.02, **prompt) as client:
        events = client.events(path, stream_options={"include_usage": True})
    *parts, end = events
    choices = [event["choices"][0] for event in parts]
    empty = [choice.get("delta", choice) for choice in choices[: choices.index(_with_text(choices))]]
    assert len(empty) > 3
    if path == CHAT:
        assert empty == [{"role": "assistant", "content": ""}, *[{}] * (len(empty) - 1)]
    else:
        assert {choice["text"] for choice in empty} == {""}
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    assert len({(event["id"], event["model"]) for event in events}) == 1
    assert end["usage"]["completion_tokens"] == 6
    (answer,) = fold_events(parts, path)
    assert answer["text"] == "Hello"


def _with_text(choices: Sequence[Any]) -> Any:
    return next(choice for choice in choices if choice.get("text") or choice.get("delta", {}).get("content"))


def test_a_prompt_refused_after_the_headers_is_an_event() -> None:
    with serving(saying("Hello", context_length=8), delay=0.2, stream_seconds=0.05, heartbeat=0.02) as client:
        *empty, last = client.events()
    assert empty
    assert (last["error"]["code"], last["error"]["param"]) == ("context_length_exceeded", "messages")


def test_an_error_during_generation_is_the_last_event() -> None:
    with serving(ScriptedBackend(lambda _: [72] * 3000 + [RuntimeError("no")])) as client:
        *events, last = client.events(max_tokens=4000)
    (answer,) = fold_events(events, CHAT)
    assert answer["reason"] is None
    assert set(answer["text"]) == {"H"}
    assert last == {
        "error": {"message": "Generation failed: no", "type": "server_error", "param": None, "code": "operation"}
    }


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_line_separators_in_an_answer_do_not_break_events(path: str) -> None:
    text = "a\u0085b\u2028c\u2029d\re\nf\x0bg\x0ch\x1ci\x1dj\x1ek"
    with serving(saying(text)) as client:
        body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "stream": True, "logprobs": None}
        said = client.post(path, json=body).text
        assert all(line.startswith("data: ") or not line for line in said.splitlines())
        (choice,) = fold_events(client.events(path), path)
        assert choice["text"] == text
