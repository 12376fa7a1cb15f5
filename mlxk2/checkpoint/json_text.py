"""JSON texts within limits: of their bytes, and of their values, since a parser makes fifty bytes of memory of two."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import NamedTuple

from mlxk2.checkpoint.files import BrokenFile
from mlxk2.errors import reason_of


class Limit(NamedTuple):
    """How many bytes a kind of file may have, and how many values may stand in it."""

    bytes: int
    values: int


# Configs that name each expert of a large model have a few hundred thousand bytes.
CONFIG = Limit(bytes=1 << 22, values=200_000)
# An index has a line of 100 bytes for each tensor: 200,000 of them in a model of a trillion weights.
INDEX = Limit(bytes=1 << 26, values=700_000)
# Headers in the usual form are not parsed; of the others, the largest have some ten thousand tensors of eleven values.
HEADER = Limit(bytes=1 << 26, values=1_000_000)


def parse(
    subject: str, text: bytes, limit: Limit, *, encoding: str = "utf-8", parse_float: Callable[[str], object] = float
) -> object:
    """Return the value of a JSON text; raise BrokenFile, about the `subject`, when it is invalid or too large."""
    values = sum(map(text.count, (b",", b"[", b"{")))
    if values > limit.values:
        raise BrokenFile(f"{subject} has too many values to be read ({values:,}, at most {limit.values:,})")
    if len(text) > limit.bytes // 4 and not text.isascii():
        # One character that is not ASCII makes a text take up to four bytes for each.
        size = f"{len(text):,} bytes that are not all ASCII, at most {limit.bytes // 4:,} of such are read"
        raise BrokenFile(f"{subject} is too large to be what its name says ({size})")
    try:
        return json.loads(text.decode(encoding), parse_float=parse_float, parse_constant=str)
    except (ValueError, RecursionError) as error:
        # As the cause, the parser's error would keep the text in memory; its words do not.
        reason = reason_of(error).partition(" (char")[0]
        raise BrokenFile(f"{subject} is not valid JSON ({reason})") from None


def finite(text: str) -> float | str:
    """Return a number, or its text where it is infinite: configs hold such, JSON can't say them."""
    number = float(text)
    return number if math.isfinite(number) else text
