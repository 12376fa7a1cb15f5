"""Texts of others, made fit to be shown: nothing in them moves a terminal's cursor, and they end somewhere."""

from __future__ import annotations

from collections.abc import Sequence

MAX_LISTED = 5


def printable(text: str, keep: str = "") -> str:
    """The text without what would move a terminal's cursor or change its colours, except the characters to keep."""
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)


def cut(text: str, limit: int) -> str:
    """The text, or as many characters of it as the limit allows and an ellipsis."""
    return text if len(text) <= limit else text[:limit] + "…"


def listed(names: Sequence[str]) -> str:
    """`a, b, c`; of many names the first few, and how many more there are."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
