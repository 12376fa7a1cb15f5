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

# A regular expression with more than a minute of backtracking.
ENDLESS = "(?:x+x+)+y"
SLOW_TEXT = ("x" * 23 + " ") * 2000
MANY = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
Change = Callable[[dict[str, Any]], None]


def write_hostile(folder: Path, change: Change) -> Path:
    """Write a model that says "Paris!" with a changed tokenizer."""
    write_chain(folder, say("Par", "is", "!"), context=1 << 20)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder


def normalize_to_many_letters(content: dict[str, Any]) -> None:
    """Let the normalizers write a hundred billion letters in place of one."""
    content["normalizer"] = {"type": "Sequence", "normalizers": [MANY] * 11}


def backtrack_without_end(content: dict[str, Any]) -> None:
    """Let the regular expression backtrack without end."""
    split = {"type": "Split", "pattern": {"Regex": ENDLESS}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}


def decode_to_a_huge_token(content: dict[str, Any]) -> None:
    """Let the decoder write a hundred thousand letters in place of one."""
    many = {**MANY, "pattern": {"String": "P"}, "content": "P" * 10}
    content["decoder"] = {"type": "Sequence", "decoders": [content["decoder"], *[many] * 5]}


def decode_to_many_letters(content: dict[str, Any]) -> None:
    """Let the decoder write a hundred billion letters in place of one."""
    many = {**MANY, "pattern": {"String": "P"}, "content": "P" * 10}
    content["decoder"] = {"type": "Sequence", "decoders": [content["decoder"], *[many] * 11]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server with the demo."""
    with Server("--model", "demo", home=tmp_path_factory.mktemp("server")) as running:
        yield running
        assert ask(running, "demo", "Hello").status_code == 200


def ask(server: Server, model: str | None, text: str, timeout: float = 120) -> httpx.Response:
    """Send a chat request to a model and return the response."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=timeout)


def add(server: Server, folder: Path, change: Change) -> str:
    """Add a hostile model to the server's cache and return its name."""
    name = f"org/{change.__name__}"
    model = write_hostile(folder, change)
    server.cache_dir.add(name, {path.name: path.read_bytes() for path in model.iterdir()})
    return name


@pytest.mark.parametrize("change", [normalize_to_many_letters, decode_to_many_letters, decode_to_a_huge_token])
def test_a_tokenizer_that_fills_memory_fails_only_its_own_request(
    server: Server, tmp_path: Path, change: Change
) -> None:
    name = add(server, tmp_path / "model", change)
    refused = ask(server, name, "a")
    assert refused.status_code in (400, 500)
    assert "model's tokenizer" in refused.json()["error"]["message"]
    assert ask(server, "demo", "Hello").status_code == 200


def test_an_endless_tokenizer_does_not_delay_other_requests(server: Server, tmp_path: Path) -> None:
    name = add(server, tmp_path / "model", backtrack_without_end)
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
    # Seconds of processor time, or of wall time on a busy machine.
    assert ended[0][1].status_code in (400, 500)
    assert ask(server, name, "Hello").status_code == 200


def test_ctrl_c_works_while_a_prompt_is_tokenized(tmp_path: Path) -> None:
    folder = write_hostile(tmp_path / "model", backtrack_without_end)
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
    # The program may be at any point of its work by now.
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert process.wait(60) == 130
    assert time.monotonic() - began < 5


def test_a_broken_adapter_is_a_server_error(tmp_path: Path) -> None:
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
        assert "mine is not an adapter" in error["message"]
        assert "secret" not in error["message"]
