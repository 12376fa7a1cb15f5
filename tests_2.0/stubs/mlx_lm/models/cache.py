"""The echo needs no cache."""

from __future__ import annotations

from typing import Any


def make_prompt_cache(model: Any) -> list[Any]:
    """No layers, no caches."""
    return []
