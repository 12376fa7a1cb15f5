"""The echo needs no cache."""

from __future__ import annotations

from typing import Any


class KVCache:
    """A cache in name only."""


class RotatingKVCache:
    """Another."""


def make_prompt_cache(model: Any) -> list[Any]:
    """No layers, no caches."""
    return []


def can_trim_prompt_cache(cache: list[Any]) -> bool:
    """Not called: nothing is kept."""
    raise NotImplementedError


def trim_prompt_cache(cache: list[Any], count: int) -> int:
    """Not called: nothing is kept."""
    raise NotImplementedError
