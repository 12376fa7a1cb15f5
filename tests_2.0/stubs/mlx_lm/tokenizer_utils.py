"""The tokenizer wrapper, in name only."""

from __future__ import annotations


class TokenizerWrapper:
    """What mlx-lm puts around a tokenizer."""


def _byte_decoder() -> dict[str, int]:
    """Not called: the echo's tokens are bytes already."""
    raise NotImplementedError
