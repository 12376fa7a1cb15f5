"""The echo needs no cache."""

from __future__ import annotations

from typing import Any


class KVCache:
    """The tokens so far."""

    def __init__(self) -> None:
        self.state: list[int] = []


class RotatingKVCache:
    """Another."""


def make_prompt_cache(model: Any) -> list[Any]:
    """The cache of one layer, which can't be batched."""
    return [KVCache()]


def can_trim_prompt_cache(cache: list[Any]) -> bool:
    """Not called: nothing is kept."""
    raise NotImplementedError


def trim_prompt_cache(cache: list[Any], count: int) -> int:
    """Not called: nothing is kept."""
    raise NotImplementedError
