"""Text for people: sizes, text that is safe to print, and the types of a progress bar."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from mlxk2.errors import ValidationError

# Called with the number of bytes done since the last call; negative when bytes must be transferred again.
Advance = Callable[[int], None]
# Called with a title and the total number of bytes; the context lasts as long as the work.
Progress = Callable[[str, int], AbstractContextManager[Advance]]

MAX_LISTED = 5
MAX_REASON_CHARACTERS = 300
# Exceptions quote requests, which can hold credentials in an address, and tokens.
_SECRETS = r"(?<=://)[^/@\s]+@|(?<=Bearer )[^\s'\"]+|\bhf_\w+"
_UNITS = ("B", "KB", "MB", "GB", "TB")
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([KMGT]?)B?", re.IGNORECASE)
_MAX_SIZE_BYTES = 1 << 60  # More than any machine has, and small enough for MLX's integers.
_MAX_SHOWN_CHARACTERS = 40


def printable(text: str, keep: str = "") -> str:
    """Return the text with a replacement character for each control character that is not in `keep`.

    Control characters can move a terminal's cursor and change its colours.
    """
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)


def cut(text: str, limit: int) -> str:
    """Return the text; if it has more than `limit` characters, return its beginning and an ellipsis."""
    return text if len(text) <= limit else text[:limit] + "…"


def one_line(text: str) -> str:
    """Return a text on one line, without secrets and without its final full stop, cut at `MAX_REASON_CHARACTERS`."""
    return cut(re.sub(_SECRETS, "", " ".join(text.split())).rstrip(". "), MAX_REASON_CHARACTERS)


def reason_of(error: BaseException) -> str:
    """Return an exception's message on one line and without secrets, or its type if the message is empty."""
    return one_line(str(error)) or type(error).__name__


def join_names(names: Sequence[str]) -> str:
    """Return `a, b, c`; for more than `MAX_LISTED` names, `a, b, c, d, e and 7 more`."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def human_size(count: int) -> str:
    """Return a number of bytes in decimal units: 0B, 999B, 1.5KB, 2.1GB."""
    power = 0
    # 999,950 bytes would be shown as 1000.0KB; 1.0MB is correct.
    while power + 1 < len(_UNITS) and count >= 999.95 * 1000**power:
        power += 1
    return f"{count / 1000**power:.1f}{_UNITS[power]}" if power else f"{count}B"


def parse_size(given: str, source: str, example: str) -> int:
    """Return the bytes of a size such as 2GB; raise ValidationError, with `source` and `example`, for other texts."""
    match = _SIZE.fullmatch(given.strip())
    unit = f"{match[2]}B".upper() if match else ""
    count = int(float(match[1]) * 1000 ** _UNITS.index(unit)) if match else -1
    if not 0 <= count <= _MAX_SIZE_BYTES:
        raise ValidationError(f"{source} must be a size such as {example}, not {cut(given, _MAX_SHOWN_CHARACTERS)!r}.")
    return count
