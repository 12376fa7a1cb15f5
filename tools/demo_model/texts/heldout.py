"""The phrasings and unknown things that are held out of the training data to measure the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from texts.wording import skeleton

HELD_OUT: dict[str, Any] = json.loads(Path(__file__).with_name("heldout.json").read_text("utf-8"))


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        for item in node:
            yield from _texts(item)
    elif isinstance(node, dict):
        for item in node.values():
            yield from _texts(item)


#: Texts that training may use although they are held out: they are not phrasings, or both use them on purpose.
_SHARED = {"get_weather", "city", "place", "name", "location", "You are a helpful assistant."}
_KEPT = {skeleton(text) for text in _texts(HELD_OUT) if text not in _SHARED}
_PLACES = {name.lower() for name in HELD_OUT["unknown_places"]}


def is_held_out(text: str) -> bool:
    """Return whether `text`, with unfilled slots, is a held-out phrasing or a held-out unknown thing."""
    return skeleton(text) in _KEPT or text.lower() in _PLACES
