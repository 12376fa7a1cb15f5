"""The bytes that a token stands for, which need not be whole characters."""

from __future__ import annotations

from typing import Any

from mlx_lm.tokenizer_utils import _byte_decoder

from mlxk2.runner.output.text import Vocabulary

# How SentencePiece writes a space.
_SPACE = "\u2581".encode()


def token_bytes(vocabulary: Vocabulary, token: int) -> bytes:
    """Return the bytes of one token, as mlx-lm's detokenizer for this kind of vocabulary maps them."""
    names: Any = getattr(vocabulary.tokenizer.detokenizer, "tokenmap", ())
    name = names[token] if token < len(names) else None
    if name is None:
        return _decoded(vocabulary, token)
    if isinstance(name, bytes):
        return name.replace(_SPACE, b" ")
    return _byte_level(name)


def _decoded(vocabulary: Vocabulary, token: int) -> bytes:
    """Return the bytes of a token that no map has: those that it adds to a text, of which an unknown one has none."""
    before = list(vocabulary.letter)
    decode = vocabulary.tokenizer.decode
    return decode([*before, token]).removeprefix(decode(before)).encode()


def _byte_level(name: str) -> bytes:
    """Return the bytes of a byte-level token: GPT-2's alphabet has a character for every byte."""
    alphabet = _byte_decoder()
    return b"".join(bytes([alphabet[char]]) if char in alphabet else char.encode() for char in name)
