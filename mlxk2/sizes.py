"""Sizes for people."""

from __future__ import annotations

import re

from mlxk2.errors import ValidationError
from mlxk2.printable import cut

_UNITS = ("B", "KB", "MB", "GB", "TB")
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([KMGT]?)B?", re.IGNORECASE)
# More than any machine has, and what MLX can still count.
_MAX_BYTES = 1 << 60
_MAX_SHOWN = 40


def human_size(count: int) -> str:
    """A number of bytes in decimal units: 0B, 999B, 1.5KB, 2.1GB."""
    power = 0
    # What would be rounded to 1000.0 is one of the next unit.
    while power + 1 < len(_UNITS) and count >= 999.95 * 1000**power:
        power += 1
    return f"{count / 1000**power:.1f}{_UNITS[power]}" if power else f"{count}B"


def parse_size(given: str, source: str, example: str) -> int:
    """Return a size such as 2GB in bytes; raise ValidationError, which names the source and an example, for others."""
    match = _SIZE.fullmatch(given.strip())
    unit = f"{match[2]}B".upper() if match else ""
    count = int(float(match[1]) * 1000 ** _UNITS.index(unit)) if match else -1
    if not 0 <= count <= _MAX_BYTES:
        raise ValidationError(f"{source} must be a size such as {example}, not {cut(given, _MAX_SHOWN)!r}.")
    return count
