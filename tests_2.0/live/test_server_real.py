"""The server on real models: those of the cache that HF_HOME names, smallest first, and always the demo.

Nothing is written there. Of the user's models, those are taken that can run here, chat, and need at most half of the
memory.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from support.serving import Server

pytestmark = pytest.mark.server_real

# Read before any test isolates itself.
HOME = os.environ.get("HF_HOME")
MAX_MODELS = 12
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
# Marks that chat templates put around turns; an answer must not contain them.
MARKS = re.compile(r"<\|\w+\|>|</?s>|<(start|end)_of_turn>|\[/?INST\]|<\|?channel\|?>|</?think>")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER_TOKENS = 400


def is_selected(config: pytest.Config) -> bool:
    """Return whether these tests are selected by their marker; with large models they take long."""
    return "server_real" in config.getoption("markexpr")


def models() -> list[str]:
    """Return the models to test, by size."""
    command = [sys.executable, "-m", "mlxk2", "list", "--json"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=300)
    found = [
        (model["size_bytes"], model["name"])
        for model in json.loads(done.stdout)["data"]["models"]
        if model["runtime_compatible"] and "chat" in model["capabilities"] and model["size_bytes"] <= MEMORY // 2
    ]
    return [name for _, name in sorted(found)][:MAX_MODELS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests with each model."""
    if "model" in metafunc.fixturenames:
        cached = models() if HOME and is_selected(metafunc.config) else []
        metafunc.parametrize("model", ["demo", *cached], scope="module")


@pytest.fixture(scope="module", autouse=True)
def asked_for(request: pytest.FixtureRequest) -> None:
    """Skip the tests unless they are selected."""
    if not is_selected(request.config):
        pytest.skip("the server on real models: pytest -m server_real")


@pytest.fixture(scope="module")
def server(asked_for: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:  # noqa: ARG001 - first of all
    environment = {"HF_HOME": HOME} if HOME else {}
    with Server("--max-concurrent", "4", home=tmp_path_factory.mktemp("home"), environment=environment) as server:
        yield server


def ask(server: Server, path: str, **body: Any) -> Any:
    """Send a request that must succeed; return the response with the answer as `text`."""
    response = httpx.post(f"{server.url}/v1/{path}", json={"temperature": 0, **body}, timeout=600)
    assert response.status_code == 200, response.text
    answer = response.json()
    choice = answer["choices"][0]
    answer["text"] = choice["text"] if path == "completions" else choice["message"]["content"]
    return answer


def streamed(server: Server, path: str, **body: Any) -> str:
    """Return the text of a stream."""
    text = ""
    request: dict[str, Any] = {"temperature": 0, "stream": True, **body}
    with httpx.stream("POST", f"{server.url}/v1/{path}", json=request, timeout=600) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    for choice in (choice for line in lines for choice in json.loads(line)["choices"]):
        text += (choice["text"] if path == "completions" else choice["delta"].get("content")) or ""
    return text


def test_the_model_is_listed_with_its_context(server: Server, model: str) -> None:
    entry = httpx.get(f"{server.url}/v1/models/{model}", timeout=60).json()
    assert entry["id"] == model
    assert entry["context_length"] >= 512


def test_answers_have_no_template_marks_and_stream_the_same_text(server: Server, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": QUESTION, "max_tokens": ANSWER_TOKENS}
    answer = ask(server, "chat/completions", **asked)
    (choice,) = answer["choices"]
    assert answer["text"] or choice["message"].get("reasoning_content")
    assert not MARKS.search(answer["text"] + choice["message"].get("reasoning_content", ""))
    assert answer["usage"]["completion_tokens"] <= ANSWER_TOKENS
    assert streamed(server, "chat/completions", **asked) == answer["text"]


def test_a_text_is_continued(server: Server, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "prompt": "The capital of France is", "max_tokens": 8}
    answer = ask(server, "completions", **asked)
    assert answer["usage"]["completion_tokens"] <= 8
    assert streamed(server, "completions", **asked) == answer["text"]


def test_a_token_limit_and_a_stop_string_end_the_text(server: Server, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "prompt": "One, two, three,", "max_tokens": 12}
    text = ask(server, "completions", **asked)["text"]
    short = ask(server, "completions", **{**asked, "max_tokens": 2})
    assert short["usage"]["completion_tokens"] <= 2
    assert text.startswith(short["text"])
    if len(text) > 4:
        stopped = ask(server, "completions", **asked, stop=text[2:5])
        assert (stopped["text"], stopped["choices"][0]["finish_reason"]) == (text.split(text[2:5])[0], "stop")


def test_the_same_seed_gives_the_same_text(server: Server, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": QUESTION, "max_tokens": 40, "temperature": 1, "seed": 7}
    assert ask(server, "chat/completions", **asked)["text"] == ask(server, "chat/completions", **asked)["text"]


def test_the_tokens_join_to_the_text(server: Server, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "prompt": "Once upon a time", "max_tokens": 20, "logprobs": 2}
    answer = ask(server, "completions", **asked)
    logprobs = answer["choices"][0]["logprobs"]
    assert all(value <= 0 for value in logprobs["token_logprobs"])
    if not any(token.startswith("bytes:") for token in logprobs["tokens"]):
        assert "".join(logprobs["tokens"]) == answer["text"]


def test_four_concurrent_requests_succeed(server: Server, model: str) -> None:
    def one(number: int) -> Any:
        question = [{"role": "user", "content": f"What is {number} + 4?"}]
        return ask(server, "chat/completions", model=model, messages=question, max_tokens=40)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(one, range(4)))
    assert {answer["model"] for answer in answers} == {model}
    assert all(answer["usage"]["completion_tokens"] for answer in answers)
