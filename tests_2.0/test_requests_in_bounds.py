"""Bounds of one request: the memory for stop strings and logprobs of many answers."""

from __future__ import annotations

import itertools
import json
import random
import tracemalloc
from typing import Any

import mlx.core as mx
import pytest
from conftest_runner import ScriptedBackend, saying

from mlxk2.errors import ValidationError
from mlxk2.runner.mlx.decoding import LogprobReport
from mlxk2.runner.output.logprobs import TokenLogprob
from mlxk2.runner.output.stops import StopScan, StopStrings
from mlxk2.runner.output.text import TextStream
from mlxk2.server.openai import fields, sse
from mlxk2.server.openai.chat import ChatBody, ChatRenderer
from mlxk2.server.openai.completions import CompletionBody, CompletionRenderer


def test_stop_strings_are_prepared_once_per_request() -> None:
    chance = random.Random(0)
    stops = ["".join(chance.choices("abc\u00e9\U0001f600", k=1000)) for _ in range(16)]
    body = ChatBody.model_validate({"messages": [{"role": "user", "content": "Hi"}], "stop": stops, "n": 60})
    vocabulary = saying("x").vocabulary
    _ = vocabulary.marks
    tracemalloc.start()
    requests = body.requests(saying("x"), 10)
    texts = [TextStream(vocabulary, entry.stop) for entry in requests]
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(texts) == 60
    assert len({id(entry.stop) for entry in requests}) == 1
    assert taken < 1 << 20


def test_biases_are_prepared_once_per_request() -> None:
    bias = {str(token): 1.0 for token in range(200)}
    body = ChatBody.model_validate(
        {"messages": [{"role": "user", "content": "Hi"}], "logit_bias": bias, "n": 60, "seed": 1}
    )
    requests = body.requests(saying("x"), 10)
    assert len({entry.sampling.seed for entry in requests}) == 60
    assert len({id(entry.sampling.logit_bias) for entry in requests}) == 1


@pytest.mark.parametrize("seed", range(200))
def test_a_text_ends_at_the_first_stop_string(seed: int) -> None:
    chance = random.Random(seed)
    text = "".join(chance.choices("ab", k=30))
    stops = tuple("".join(chance.choices("ab", k=chance.randint(1, 7))) for _ in range(chance.randint(0, 4)))
    scan, given = StopScan(StopStrings(stops)), ""
    for part in _parts(text, chance):
        given += scan.add(part)
        read = len(given) + len(scan.held)
        if scan.found:
            break
        # The held text could begin a stop string.
        assert given + scan.held == text[:read]
        assert not scan.held or any(stop.startswith(scan.held) for stop in stops)
    ends = [(end, -len(stop)) for stop in stops for end in range(31) if text[:end].endswith(stop)]
    if ends:
        assert scan.found and given == text[: sum(min(ends))]
    else:
        assert not scan.found and given + scan.flush() == text


def _parts(text: str, chance: random.Random) -> list[str]:
    bounds = [0, *sorted(chance.sample(range(1, len(text)), 8)), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


def _chat(**options: Any) -> ChatBody:
    return ChatBody.model_validate({"messages": [{"role": "user", "content": "Hi"}], "logprobs": True, **options})


def test_too_many_logprobs_are_refused_before_generation() -> None:
    model = ScriptedBackend(lambda _: [], context_length=1 << 20)
    refused = r"1,280,000 tokens with 21 logprobs each, .* at most 2,097,152"
    with pytest.raises(ValidationError, match=refused) as caught:
        _chat(n=64, top_logprobs=20, max_tokens=20_000).requests(model, None)
    assert caught.value.param == "max_tokens"
    body = CompletionBody.model_validate({"prompt": ["a"] * 64, "logprobs": 20, "max_tokens": 20_000})
    with pytest.raises(ValidationError, match=r"1,280,000 tokens"):
        body.requests(model, None)
    _chat(n=64, top_logprobs=20, max_tokens=20_000, stream=True).requests(model, None)
    _chat(n=64, top_logprobs=20, max_tokens=1500).requests(model, None)


def test_the_number_of_logprobs_is_limited_by_the_context() -> None:
    model = ScriptedBackend(lambda _: [], context_length=1 << 14)
    _chat(n=4, top_logprobs=20, max_tokens=1 << 30).requests(model, None)


def test_answers_without_a_limit_get_one_that_fits_their_logprobs() -> None:
    model = ScriptedBackend(lambda _: [], context_length=1 << 20)
    for count in (1, 64):
        requests = _chat(n=count, top_logprobs=20).requests(model, None)
        assert sum((entry.max_tokens or 0) * 21 for entry in requests) <= fields.MAX_LOGPROBS_HELD
    assert _chat(top_logprobs=0).requests(model, None)[0].max_tokens == 1 << 19


@pytest.mark.parametrize(
    "renderer",
    [
        ChatRenderer(_chat()),
        CompletionRenderer(CompletionBody.model_validate({"prompt": "Hi", "logprobs": 0})),
    ],
)
def test_a_response_with_many_logprobs_takes_little_memory(
    renderer: ChatRenderer | CompletionRenderer,
) -> None:
    count = 3000
    renderer.vocabulary = saying("x").vocabulary
    tracemalloc.start()
    output = sse.SequenceOutput(finish_reason="stop")
    output.logprobs = [_logprob(number) for number in range(count)]
    held, _ = tracemalloc.get_traced_memory()
    content = sse.encode(renderer.choice(0, output))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 800 * count
    assert peak - held < 2.5 * len(content) + 1_000_000
    rendered = json.loads(content)["logprobs"]
    entries = rendered["content"] if isinstance(renderer, ChatRenderer) else rendered["top_logprobs"]
    assert len(entries) == count


def _logprob(number: int) -> TokenLogprob:
    logits = mx.arange(100.0)[None] / 7
    return LogprobReport(logits, mx.array([number % 100]), [20]).sequences[0].read(number % 100)
