"""The tokenizer of the echo: one token per byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

END = 256


class Detokenizer:
    """One byte per token."""

    last_segment = ""

    def __init__(self, tokenizer: object) -> None:
        """Ignore the tokenizer."""

    def add_token(self, token: int) -> None:
        """Decode a byte."""
        self.last_segment = chr(token)

    def finalize(self) -> None:
        """Clear the text: nothing is held back."""
        self.last_segment = ""

    def reset(self) -> None:
        """Do nothing: there is no state."""


# Not used: the echo's tokens are bytes already.
BPEStreamingDetokenizer = SPMStreamingDetokenizer = Detokenizer


class Tokenizer:
    """Has one token per byte and one for the end; the chat template is `role:content`."""

    eos_token_ids = frozenset({END})
    has_thinking = False
    has_chat_template = True
    chat_template = bos_token = response_initial_state = None
    structural_markers: tuple[str, ...] = ()
    response_transitions: dict[str, Any] = {}
    added_tokens_decoder: dict[int, Any] = {}
    all_special_ids = [END]
    think_start = think_end = None
    _thinking_kwarg = "enable_thinking"

    @property
    def _tokenizer(self) -> Tokenizer:
        """Return the wrapped tokenizer, which is this one."""
        return self

    @property
    def _detokenizer(self) -> Detokenizer:
        """Return a new detokenizer."""
        return Detokenizer(self)

    def get_vocab(self) -> dict[str, int]:
        """Return the token of the end."""
        return {"<end>": END}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Return the names of special tokens."""
        return ["<end>" for _ in ids]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the bytes of the text."""
        return list(text.encode())

    def _chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> list[int]:
        """Return the bytes of `role:content` for every message."""
        return self.encode("".join(f"{message['role']}:{message['content']}" for message in messages))

    def __len__(self) -> int:
        return END + 1


def load(folder: Path, options: dict[str, Any], eos_token_ids: Any, defaults: Any) -> Tokenizer:
    """Return the tokenizer of bytes."""
    return Tokenizer()


def _byte_decoder() -> dict[str, int]:
    """Fail: the echo's tokens are bytes already."""
    raise NotImplementedError
