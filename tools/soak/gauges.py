"""What a process holds: memory, open files, threads."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

Sample = tuple[float, int]
# Seconds of a life of which something can be said about the memory, and the part of it in which it may grow: it does
# until every kind of load has met every other.
SHORTEST = 120.0
_WARM_UP = 1 / 2
# Of memory, the peak at the end over that of the warm-up.
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
    """The most memory in the warm-up of a life, and the most in its last quarter; None if the life was too short.

    Between its peaks the memory goes up and down by a tenth and more, as models come and go.
    """
    if not samples or samples[-1][0] - samples[0][0] < SHORTEST:
        return None
    sizes = [size for _, size in samples]
    return max(sizes[: int(len(sizes) * _WARM_UP)]), max(sizes[-(len(sizes) // 4) :])
