"""Measure two programs against each other: paired rounds, medians of ratios, and a table of verdicts."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, TypeVar

ROUNDS = 5
RECORD_VARIABLE = "MLXK2_FIGURES"
PACKAGES = ("mlxk2", "mlx", "mlx-lm", "huggingface-hub")
# The kernel counts in kilobytes, that of macOS in bytes.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024

Pair = tuple[float, float]
T = TypeVar("T")

# What pip installs is compiled: a copy installed from its sources is compared as users have it, from its first run on.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


class Run(NamedTuple):
    """How long a process took, in seconds, and how much memory it held at its peak, in bytes."""

    seconds: float
    peak_bytes: int


class Sides(NamedTuple):
    """The medians of the two programs that a ratio compares, with their names and unit."""

    ours: float
    theirs: float
    unit: str
    names: tuple[str, str]


class Figure(NamedTuple):
    """What was measured, and the bound that it must keep; a figure without a bound is printed and not judged."""

    what: str
    measured: float
    at_most: float | None = None
    at_least: float | None = None
    unit: str = "x"
    sides: Sides | None = None

    @property
    def is_met(self) -> bool:
        """Whether the bound is kept."""
        below = self.at_most is None or self.measured <= self.at_most
        return below and (self.at_least is None or self.measured >= self.at_least)

    @property
    def bound(self) -> str:
        """The bound in words, or a dash."""
        bounds = (("at most", self.at_most), ("at least", self.at_least))
        return next((f"{word} {value:g} {self.unit}" for word, value in bounds if value is not None), "-")

    def as_json(self) -> dict[str, object]:
        """Return what a report of the figures needs."""
        sides = self.sides and self.sides._asdict()
        return {"what": self.what, "measured": self.measured, "unit": self.unit, "bound": self.bound, "sides": sides}

    def row(self) -> tuple[str, str, str, str]:
        """Return the figure as a row of the table."""
        bound = self.bound
        verdict = "-" if bound == "-" else "ok" if self.is_met else "MISSED"
        return self.what, f"{self.measured:.3f} {self.unit}", bound, verdict


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Run:
    """Run a process to its end, without its output; RuntimeError with its stderr when it fails.

    The peak is never below this process's own, which the kernel carries over to a child: keep the caller small.
    """
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{errors.read().decode(errors='replace')}")
    return Run(seconds, usage.ru_maxrss * _RSS_UNIT)


def paired(first: Callable[[], T], second: Callable[[], T], rounds: int = ROUNDS) -> list[tuple[T, T]]:
    """Do both in turn, A B A B, after a warm-up of each that does not count; what they returned."""
    first()
    second()
    return [(first(), second()) for _ in range(rounds)]


def median_ratio(pairs: Sequence[Pair]) -> float:
    """Return the median of first to second, each pair taken by itself."""
    return statistics.median(first / second for first, second in pairs)


def compared(
    what: str,
    pairs: Sequence[Pair],
    unit: str,
    names: tuple[str, str],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Figure:
    """Print the medians of both sides and how far the ratios of the pairs lie apart; return the median ratio."""
    first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    print(
        f"{what}: {names[0]} {first:.3f} {unit}, {names[1]} {second:.3f} {unit}, "
        f"{len(pairs)} pairs, ratios {ratios[0]:.3f} to {ratios[-1]:.3f}",
        flush=True,
    )
    return Figure(what, median_ratio(pairs), at_most, at_least, sides=Sides(first, second, unit, names))


def verdict(figures: Sequence[Figure]) -> int:
    """Print the machine and a table of the figures; return the exit status, 1 when a bound is missed.

    Where the variable `MLXK2_FIGURES` names a file, add the figures to it as a line of JSON.
    """
    if record := os.environ.get(RECORD_VARIABLE):
        with open(record, "a", encoding="utf-8") as file:
            file.write(json.dumps({"machine": _machine(), "figures": [figure.as_json() for figure in figures]}) + "\n")
    rows = [("figure", "measured", "bound", ""), *(figure.row() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    print(f"\n{_machine()}\n")
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0 if all(figure.is_met for figure in figures) else 1


def made(folder: Path, program: str, *words: str) -> Path:
    """Return the folder that a program beside this one makes: made once, and whole or not at all.

    The program runs in a process of its own, so that nothing of it stays in the memory of this one.
    """
    if not folder.is_dir():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        run([sys.executable, str(Path(__file__).with_name(program)), str(unfinished), *words])
        unfinished.rename(folder)
    return folder


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    return f"{machine}, Python {platform.python_version()}, {packages}"


@contextmanager
def workspace(keep: str | None) -> Iterator[Path]:
    """Yield a folder for what a benchmark makes: `keep`, which stays and is used again, or one that goes."""
    if keep is not None:
        Path(keep).mkdir(parents=True, exist_ok=True)
        yield Path(keep).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="mlxk2-benchmark-") as folder:
        yield Path(folder)
