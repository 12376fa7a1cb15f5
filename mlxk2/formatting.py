"""What people see: sizes, text that is safe to print, and how far a long work has come."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from mlxk2.errors import ValidationError

# Called with the number of bytes done since the last call; a negative number when bytes must be done again.
Advance = Callable[[int], None]
# Called with a title and the total number of bytes; stays entered during the work.
Progress = Callable[[str, int], AbstractContextManager[Advance]]

MAX_LISTED = 5
MAX_REASON_CHARACTERS = 300
# An exception may quote these parts of a request: credentials in an address, and tokens.
_SECRETS = r"(?<=://)[^/@\s]+@|(?<=Bearer )[^\s'\"]+|\bhf_\w+"
_UNITS = ("B", "KB", "MB", "GB", "TB")
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([KMGT]?)B?", re.IGNORECASE)
# More than any machine has, and few enough for MLX's integers.
_MAX_BYTES = 1 << 60
_MAX_SHOWN = 40


def printable(text: str, keep: str = "") -> str:
    """Return the text without what moves a terminal's cursor or changes its colours, except the characters to keep."""
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)


def cut(text: str, limit: int) -> str:
    """Return the text, or as many characters of it as the limit allows and an ellipsis."""
    return text if len(text) <= limit else text[:limit] + "…"


def one_line(text: str) -> str:
    """Return a text on one line, without secrets and a full stop at its end, cut at `MAX_REASON_CHARACTERS`."""
    return cut(re.sub(_SECRETS, "", " ".join(text.split())).rstrip(". "), MAX_REASON_CHARACTERS)


def reason_of(error: BaseException) -> str:
    """Return what an exception says, on one line and without secrets; its type where it says nothing."""
    return one_line(str(error)) or type(error).__name__


def join_names(names: Sequence[str]) -> str:
    """Return `a, b, c`; of many names the first few, and how many more there are."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def human_size(count: int) -> str:
    """Return a number of bytes in decimal units: 0B, 999B, 1.5KB, 2.1GB."""
    power = 0
    # A number that rounds to 1000.0 is shown as 1.0 of the next unit.
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
