"""A stream shows the text that the tokenizer decodes from the same tokens, with any vocabulary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.tiny_models import write_tokenizer
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Fast

from mlxk2.runner.mlx.loader import load_vocabulary
from mlxk2.runner.output.text import TextStream
from mlxk2.runner.prompt.confined import Starter

PIECES = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b"]
ODD_PIECES = ["<0x", "<0x10", "<0xG1>", "<0x1>", "<0x41>>", "<0xAB", "<0x\u2581>"]


def write_pieces(folder: Path) -> Fast:
    """Write a tokenizer of SentencePiece's kind with text pieces that look like byte pieces."""
    vocabulary = {name: number for number, name in enumerate([*PIECES, *ODD_PIECES])}
    fast = Fast(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    replace, strip = decoders.Replace("\u2581", " "), decoders.Strip(" ", 1, 0)
    fast.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    fast.add_tokens([AddedToken("<0xadded", special=False)])
    fast.save(str(folder / "tokenizer.json"))
    return fast


def stream(folder: Path, tokens: Sequence[int]) -> tuple[str, bytes]:
    """Return the text of an answer with these tokens, and the joined bytes of the single tokens."""
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokenizer, vocabulary = load_vocabulary(folder, "model", {}, Starter())
    text = TextStream(vocabulary)
    pieces = [piece for token in tokens for piece in text.add(token)] + text.finish()
    said = b"".join(vocabulary.bytes_of(token) for token in tokens)
    tokenizer.close()
    return "".join(part for _, part in pieces), said


def test_pieces_that_only_look_like_bytes_are_text(tmp_path: Path) -> None:
    fast = write_pieces(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    names = ["a", *ODD_PIECES, "<0xadded", "<0xC3>", "<0xA9>", "<0x00>", "b"]
    numbers = fast.get_vocab()
    tokens = [numbers[name] for name in names]
    text, said = stream(tmp_path, tokens)
    assert text == fast.decode(tokens) == said.decode()


@pytest.mark.parametrize("added", ["\u00e9 b", "\uff5ctool\u2581begin\uff5c", "a b", "\u0100 c", "\u4f60"])
def test_zero_bytes_and_added_tokens_are_shown_unchanged(tmp_path: Path, added: str) -> None:
    write_tokenizer(tmp_path)
    fast = Fast.from_file(str(tmp_path / "tokenizer.json"))
    fast.add_tokens([AddedToken(added, special=False)])
    fast.save(str(tmp_path / "tokenizer.json"))
    numbers = fast.get_vocab()
    tokens = [numbers[name] for name in ("x", "\u0100", "y", added, "\u0120", "z", added)]
    text, said = stream(tmp_path, tokens)
    assert text == fast.decode(tokens) == said.decode()
    assert "\0" in text


ENDS = {
    "beside": {"eos_token_id": 5},
    "in the part about text": {"text_config": {"eos_token_id": 5}},
    "several in it": {"text_config": {"eos_token_id": [4, 5, None, "x"]}},
    "in another name of it": {"llm_config": {"eos_token_id": 5}},
}


@pytest.mark.parametrize("config", ENDS.values(), ids=ENDS)
def test_end_tokens_are_found_at_every_place_in_the_config(tmp_path: Path, config: dict[str, object]) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    tokenizer, vocabulary = load_vocabulary(tmp_path, "model", config, Starter())
    tokenizer.close()
    assert 5 in vocabulary.end_tokens and 6 not in vocabulary.end_tokens
