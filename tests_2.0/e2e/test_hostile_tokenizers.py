"""Tokenizers that fill memory or never end: requests for them are refused, and other requests go on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.serving import Server, environment_of
from support.tiny_models import say, write_adapter, write_chain

pytestmark = pytest.mark.e2e

# Backtracks for a minute and longer.
ENDLESS = "(?:x+x+)+y"
SLOW_TEXT = ("x" * 23 + " ") * 2000
MANY = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
Change = Callable[[dict[str, Any]], None]


def write_hostile(folder: Path, change: Change) -> Path:
    """A model that says "Paris!", whose tokenizer is another one."""
    write_chain(folder, say("Par", "is", "!"), context=1 << 20)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder


def multiplies(content: dict[str, Any]) -> None:
    """Its normalizers write a hundred billion letters in place of one."""
    content["normalizer"] = {"type": "Sequence", "normalizers": [MANY] * 11}


def backtracks(content: dict[str, Any]) -> None:
    """Its regular expression does not come to an end."""
    split = {"type": "Split", "pattern": {"Regex": ENDLESS}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}


def decodes_more_than_a_token_can_be(content: dict[str, Any]) -> None:
    """Its decoder writes a hundred thousand letters in place of one."""
    many = {**MANY, "pattern": {"String": "P"}, "content": "P" * 10}
    content["decoder"] = {"type": "Sequence", "decoders": [content["decoder"], *[many] * 5]}


def decodes_much(content: dict[str, Any]) -> None:
    """Its decoder writes a hundred billion letters in place of one."""
    many = {**MANY, "pattern": {"String": "P"}, "content": "P" * 10}
    content["decoder"] = {"type": "Sequence", "decoders": [content["decoder"], *[many] * 11]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the demo."""
    with Server("--model", "demo", home=tmp_path_factory.mktemp("server")) as running:
        yield running
        assert ask(running, "demo", "Hello").status_code == 200


def ask(server: Server, model: str | None, text: str, timeout: float = 120) -> httpx.Response:
    """Ask a model."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=timeout)


def add(server: Server, folder: Path, change: Change) -> str:
    """Lay a hostile model into the server's cache."""
    name = f"org/{change.__name__}"
    model = write_hostile(folder, change)
    server.cache_dir.add(name, {path.name: path.read_bytes() for path in model.iterdir()})
    return name


@pytest.mark.parametrize("change", [multiplies, decodes_much, decodes_more_than_a_token_can_be])
def test_a_tokenizer_that_fills_memory_fails_alone(server: Server, tmp_path: Path, change: Change) -> None:
    name = add(server, tmp_path / "model", change)
    refused = ask(server, name, "a")
    assert refused.status_code in (400, 500)
    assert "model's tokenizer" in refused.json()["error"]["message"]
    assert ask(server, "demo", "Hello").status_code == 200


def test_a_tokenizer_that_does_not_end_holds_up_nobody_else(server: Server, tmp_path: Path) -> None:
    name = add(server, tmp_path / "model", backtracks)
    assert ask(server, name, "Hello").status_code == 200
    ended: list[tuple[float, httpx.Response]] = []

    def ask_slowly() -> None:
        refused = ask(server, name, SLOW_TEXT)
        ended.append((time.monotonic(), refused))

    thread = threading.Thread(target=ask_slowly)
    thread.start()
    with pytest.raises(httpx.ReadTimeout):
        ask(server, name, SLOW_TEXT, timeout=1)
    assert ask(server, name, "Hello").status_code == 200
    answered = time.monotonic()
    thread.join()
    assert answered < ended[0][0]
    # Of processor time, or of any on a machine that is busy.
    assert ended[0][1].status_code in (400, 500)
    assert ask(server, name, "Hello").status_code == 200


def test_ctrl_c_is_heard_while_a_prompt_is_tokenized(tmp_path: Path) -> None:
    folder = write_hostile(tmp_path / "model", backtracks)
    process = subprocess.Popen(
        [sys.executable, "-m", "mlxk2", "run", str(folder), "-"],
        env=environment_of(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    process.stdin.write(SLOW_TEXT.encode())
    process.stdin.close()
    # Wherever it is by then.
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert process.wait(60) == 130
    assert time.monotonic() - began < 5


def test_a_broken_adapter_is_not_the_clients_fault(tmp_path: Path) -> None:
    folder = write_chain(tmp_path / "model", say("Par", "is", "!"))
    (tmp_path / "secret").mkdir()
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    adapter = write_adapter(tmp_path / "secret" / "mine", size)
    with Server("--model", str(folder), "--adapter", str(adapter), home=tmp_path) as server:
        assert ask(server, "demo", "Hello").status_code == 200
        (adapter / "adapters.safetensors").unlink()
        refused = ask(server, None, "Hello")
        assert refused.status_code == 500
        error = refused.json()["error"]
        assert (error["param"], error["code"]) == (None, "operation")
        assert "mine is no adapter" in error["message"]
        assert "secret" not in error["message"]
