"""What a process holds: memory, open files, threads."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

Sample = tuple[float, int]
# Seconds of a life of which something can be said about the memory, and the part of it in which it may grow: it does
# until every kind of load has met every other.
SHORTEST = 120.0
_WARM_UP = 1 / 2
# Of memory, the last samples' over the first ones'.
MOST_GROWTH = 1.05


class Held(NamedTuple):
    """How many files and threads a process has."""

    files: int
    threads: int


def memory_of(pid: int) -> int | None:
    """The bytes of memory that a process takes (its resident set); None if it has ended."""
    said = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return int(said) * 1024 if said.strip() else None


def held_by(pid: int) -> Held | None:
    """The files and threads of a process; None where /proc can't tell."""
    folder = Path("/proc") / str(pid)
    if not folder.is_dir():
        return None
    return Held(*(sum(1 for _ in (folder / name).iterdir()) for name in ("fd", "task")))


def settled(samples: Sequence[Sample]) -> tuple[int, int] | None:
    """The memory at the beginning and at the end of a life after its warm-up, as medians; None if it was too short."""
    if not samples or samples[-1][0] - samples[0][0] < SHORTEST:
        return None
    warm = samples[int(len(samples) * _WARM_UP) :]
    quarter = max(1, len(warm) // 4)
    first, last = warm[:quarter], warm[-quarter:]
    return int(statistics.median(size for _, size in first)), int(statistics.median(size for _, size in last))
