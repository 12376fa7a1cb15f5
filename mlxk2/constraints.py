"""What a value of the JSON API must be beyond its type."""

from __future__ import annotations

from typing import Annotated, NamedTuple


class Pattern(NamedTuple):
    """A string that matches this regular expression."""

    regex: str


class Minimum(NamedTuple):
    """A number that is at least this."""

    value: int


Count = Annotated[int, Minimum(0)]
Measure = Annotated[float, Minimum(0)]
Port = Annotated[int, Minimum(1)]
Commit = Annotated[str, Pattern("^[A-Za-z0-9]{40}$")]
Timestamp = Annotated[str, Pattern("^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")]
Version = Annotated[str, Pattern("^[0-9]+\\.[0-9]+\\.[0-9]+$")]
