"""Completions of models whose tokenizers write spaces in different ways: the text is exactly that of the tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.serving import Server
from support.tiny_models import NEWLINE, say, write_chain

pytestmark = pytest.mark.e2e

SPM = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
# The decoders of the tokenizers of Llama 2, Gemma and T5.
DECODERS: dict[str, Any] = {
    "spm": {"type": "Sequence", "decoders": [*SPM, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "spm-without-strip": {"type": "Sequence", "decoders": SPM},
    "metaspace": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
}
# Names of byte tokens, which become `<0xF0>` and so on.
BYTES = {f"byte{byte:02X}": f"<0x{byte:02X}>" for byte in "😀".encode()}
TOKENS = ("▁of", "▁", "▁Fr", "ance", *BYTES, "!")
TEXT = " of  France😀!"


def write_spaced(folder: Path, decoder: Any, after: str) -> Path:
    """Write a chain that says TOKENS after this one, with a tokenizer that writes a space as SentencePiece does."""
    tokens = [token for token in TOKENS if decoder["type"] != "Metaspace" or token not in BYTES]
    write_chain(folder, say(*tokens, after=after))
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_bytes())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {BYTES.get(token, token): number for token, number in vocabulary.items()}
    tokenizer["pre_tokenizer"] = None
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    tokenizer["decoder"] = decoder
    path.write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    with Server(home=home) as server:
        for name, decoder in DECODERS.items():
            folder = write_spaced(home / name, decoder, "x")
            server.cache_dir.add(f"org/{name}", {path.name: path.read_bytes() for path in folder.iterdir()} | MLX)
        yield server


MLX = {"README.md": b"---\ntags: [mlx]\n---\n"}


def ask(server: Server, **body: Any) -> Any:
    """Return the only choice of a completion."""
    response = httpx.post(f"{server.url}/v1/completions", json={"temperature": 0, **body}, timeout=60)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice


def streamed(server: Server, **body: Any) -> str:
    """Return the text of a stream."""
    response = httpx.post(f"{server.url}/v1/completions", json={"temperature": 0, "stream": True, **body}, timeout=60)
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line][:-1]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


@pytest.mark.parametrize("name", DECODERS)
def test_the_text_of_a_completion_is_that_of_its_tokens(server: Server, name: str) -> None:
    text = TEXT if name != "metaspace" else TEXT.replace("😀", "")
    asked = {"model": f"org/{name}", "prompt": "The x"}
    choice = ask(server, **asked, logprobs=0)
    assert choice["text"] == text == streamed(server, **asked)
    logprobs = choice["logprobs"]
    if name == "metaspace":
        assert "".join(logprobs["tokens"]) == text
        assert logprobs["text_offset"] == [0, 3, 4, 7, 11]
    else:
        assert logprobs["tokens"] == [
            " of",
            " ",
            " Fr",
            "ance",
            r"bytes:\xf0",
            r"bytes:\x9f",
            r"bytes:\x98",
            r"bytes:\x80",
            "!",
        ]
        assert logprobs["text_offset"] == [0, 3, 4, 7, 11, 11, 11, 11, 12]
    assert ask(server, **asked, stop="ce")["text"] == " of  Fran"


def test_a_completion_keeps_its_first_line_end(tmp_path: Path) -> None:
    write_chain(tmp_path / "lines", say(NEWLINE, "Ġ", "b", after="x"))
    with Server("--model", str(tmp_path / "lines"), home=tmp_path) as server:
        assert ask(server, prompt="x")["text"] == "\n b"
