"""mlx-lm's streaming detokenizers, with what each token stands for as the tokenizer itself decodes it.

mlx-lm's own take a zero byte for none, fail on pieces that only look like bytes, and read added tokens as bytes.
"""

from __future__ import annotations

import re
from typing import Any

from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, SPMStreamingDetokenizer, _byte_decoder

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class SentencePieceDetokenizer(SPMStreamingDetokenizer):  # type: ignore[misc]
    """For vocabularies of SentencePiece's kind, in which `<0x0A>` is a byte (tokenizers' `ByteFallback`)."""

    def __init__(self, tokenizer: Any, trim_space: bool = True) -> None:
        # mlx-lm's own reads a number out of all that begins like a byte.
        self.trim_space = trim_space
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.tokenmap = [_piece(name or "") for name in names]
        self.reset()


def _piece(name: str) -> bytes:
    byte = _BYTE.fullmatch(name)
    return bytes.fromhex(byte[1]) if byte else name.encode("utf-8", "replace")


class ByteLevelDetokenizer(BPEStreamingDetokenizer):  # type: ignore[misc]
    """For vocabularies of GPT-2's kind, whose alphabet has a character for each byte (tokenizers' `ByteLevel`)."""

    def __init__(self, tokenizer: Any) -> None:
        bytes_of = _byte_decoder()
        alphabet = {byte: character for character, byte in bytes_of.items()}
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.tokenmap = [_spelled(name or "", bytes_of, alphabet) for name in names]
        self.reset()

    def _decode_bytes(self, seq: str) -> str:
        return bytes(map(_byte_decoder().__getitem__, seq)).decode("utf-8", "replace")


def _spelled(name: str, bytes_of: dict[str, int], alphabet: dict[int, str]) -> str:
    """Return a token in the alphabet of bytes; one with other characters stands for its own text."""
    if bytes_of.keys() >= set(name):
        return name
    return "".join(alphabet[byte] for byte in name.encode("utf-8", "replace"))


# By the names of mlx-lm's, which chooses one by the tokenizer's decoder.
BY_NAME: dict[str, Any] = {
    "SPMStreamingDetokenizer": SentencePieceDetokenizer,
    "BPEStreamingDetokenizer": ByteLevelDetokenizer,
}
