"""mlx-lm's streaming detokenizers, corrected to decode the same bytes as the tokenizer.

mlx-lm's own classes ignore a zero byte, fail on names that only look like bytes, and read added tokens as bytes.

This module imports no other module of this package: the tokenizer's process imports it too, and must not import MLX.
"""

from __future__ import annotations

import re
from typing import Any

from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, SPMStreamingDetokenizer, _byte_decoder

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581".encode()  # SentencePiece's character for a space.


class SentencePieceDetokenizer(SPMStreamingDetokenizer):  # type: ignore[misc]
    """Decodes vocabularies like SentencePiece's, in which `<0x0A>` is a byte (tokenizers' `ByteFallback`)."""

    def __init__(self, tokenizer: Any, trim_space: bool = True) -> None:
        # mlx-lm's own class parses a number from every name that begins like a byte, and fails on other names.
        self.trim_space = trim_space
        self.tokenmap: list[bytes] = []
        for name in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))):
            byte = _BYTE.fullmatch(name or "")
            self.tokenmap.append(bytes.fromhex(byte[1]) if byte else (name or "").encode("utf-8", "replace"))
        self.reset()


class ByteLevelDetokenizer(BPEStreamingDetokenizer):  # type: ignore[misc]
    """Decodes vocabularies like GPT-2's, which have a character for each byte (tokenizers' `ByteLevel`)."""

    def __init__(self, tokenizer: Any) -> None:
        bytes_of = _byte_decoder()
        alphabet = {byte: character for character, byte in bytes_of.items()}
        self.tokenmap: list[str] = []
        for name in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))):
            # A token with characters outside the alphabet is its own text.
            is_in_alphabet = bytes_of.keys() >= set(name or "")
            text = (name or "").encode("utf-8", "replace")
            self.tokenmap.append(name or "" if is_in_alphabet else "".join(alphabet[byte] for byte in text))
        self.reset()

    def _decode_bytes(self, seq: str) -> str:
        return bytes(map(_byte_decoder().__getitem__, seq)).decode("utf-8", "replace")


# The classes by the names of mlx-lm's classes; mlx-lm chooses one by the tokenizer's decoder.
BY_NAME: dict[str, Any] = {
    "SPMStreamingDetokenizer": SentencePieceDetokenizer,
    "BPEStreamingDetokenizer": ByteLevelDetokenizer,
}


def mapped_bytes(detokenizer: Any, token: int) -> bytes | None:
    """Return the bytes of a token from the detokenizer's map, or None if the map or the token is missing."""
    names = getattr(detokenizer, "tokenmap", ())
    name = names[token] if token < len(names) else None
    if name is None:
        return None
    if isinstance(name, bytes):
        return name.replace(_SPACE, b" ")
    # GPT-2's alphabet has a character for every byte.
    alphabet = _byte_decoder()
    return b"".join(bytes([alphabet[char]]) if char in alphabet else char.encode() for char in name)
