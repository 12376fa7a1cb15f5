"""Sizes for people."""

from __future__ import annotations

_UNITS = ("B", "KB", "MB", "GB", "TB")


def human_size(count: int) -> str:
    """A number of bytes in decimal units: 0B, 999B, 1.5KB, 2.1GB."""
    power = 0
    # What would be rounded to 1000.0 is one of the next unit.
    while power + 1 < len(_UNITS) and count >= 999.95 * 1000**power:
        power += 1
    return f"{count / 1000**power:.1f}{_UNITS[power]}" if power else f"{count}B"
