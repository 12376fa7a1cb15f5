"""The caches of the echo."""

from __future__ import annotations

from typing import Any


class KVCache:
    """Holds the tokens so far."""

    def __init__(self) -> None:
        self.state: list[int] = []


class RotatingKVCache:
    """Another kind of cache; never created."""


def make_prompt_cache(model: Any) -> list[Any]:
    """Return the cache of one layer, which can't be batched."""
    return [KVCache()]


def can_trim_prompt_cache(cache: list[Any]) -> bool:
    """Fail: the echo keeps nothing."""
    raise NotImplementedError


def trim_prompt_cache(cache: list[Any], count: int) -> int:
    """Fail: the echo keeps nothing."""
    raise NotImplementedError
