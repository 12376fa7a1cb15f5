"""Loading, without reading weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlx_lm.models.llama import Model

MODEL_REMAPPING: dict[str, str] = {}
MODEL_ARCHITECTURE_REMAPPING: dict[tuple[str, str], str] = {}
END = 256


class Detokenizer:
    """One byte per token."""

    last_segment = ""

    def add_token(self, token: int) -> None:
        """Decode a byte."""
        self.last_segment = chr(token)

    def finalize(self) -> None:
        """Nothing is held back."""
        self.last_segment = ""


class Tokenizer:
    """One token per byte, and one for the end; the chat template is `role:content`."""

    eos_token_ids = frozenset({END})
    has_thinking = False
    has_chat_template = True
    chat_template = bos_token = response_initial_state = None
    structural_markers: tuple[str, ...] = ()
    response_transitions: dict[str, Any] = {}
    added_tokens_decoder: dict[int, Any] = {}
    all_special_ids = [END]
    _chat_template = None

    @property
    def _tokenizer(self) -> Tokenizer:
        """The tokenizer that is wrapped: there is but one."""
        return self

    @property
    def detokenizer(self) -> Detokenizer:
        """A new one at each reading."""
        return Detokenizer()

    def get_vocab(self) -> dict[str, int]:
        """The end."""
        return {"<end>": END}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Names of special tokens."""
        return ["<end>" for _ in ids]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The bytes of the text."""
        return list(text.encode())

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> list[int]:
        """The bytes of `role:content`."""
        return self.encode("".join(f"{message['role']}:{message['content']}" for message in messages))

    def __len__(self) -> int:
        return END + 1


def load_config(folder: Path) -> dict[str, Any]:
    """The config, as it is."""
    return dict(json.loads((folder / "config.json").read_bytes()))


def load_model(folder: Path, lazy: bool) -> tuple[Model, dict[str, Any]]:
    """The echo."""
    return Model(), load_config(folder)


def load_tokenizer(folder: Path, options: dict[str, Any], eos_token_ids: Any) -> Tokenizer:
    """The tokenizer of bytes."""
    return Tokenizer()


def load_adapters(model: Model, folder: str) -> Model:
    """The echo has nothing to adapt."""
    return model
