"""Texts of others, made safe for a terminal."""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    """The text without what would move a terminal's cursor or change its colours, except the characters to keep."""
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)
