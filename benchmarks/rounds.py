"""Compare two programs: paired rounds, medians of ratios, and a table of verdicts."""

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
# ru_maxrss is in kilobytes on Linux, in bytes on macOS.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024

Pair = tuple[float, float]
T = TypeVar("T")

# Python must write compiled modules, because users have them: pip compiles the modules that it installs.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


class Run(NamedTuple):
    """The time of a process in seconds, and its peak memory in bytes."""

    seconds: float
    peak_bytes: int


class Sides(NamedTuple):
    """The medians of the two programs that a ratio compares, with their names and unit."""

    ours: float
    theirs: float
    unit: str
    names: tuple[str, str]


class Figure(NamedTuple):
    """A measured value and its bound; a figure without a bound is printed, but not judged."""

    what: str
    measured: float
    at_most: float | None = None
    at_least: float | None = None
    unit: str = "x"
    sides: Sides | None = None

    @property
    def is_met(self) -> bool:
        """Whether the value is within its bound."""
        below = self.at_most is None or self.measured <= self.at_most
        return below and (self.at_least is None or self.measured >= self.at_least)

    @property
    def bound(self) -> str:
        """The bound in words, or a dash."""
        bounds = (("at most", self.at_most), ("at least", self.at_least))
        return next((f"{word} {value:g} {self.unit}" for word, value in bounds if value is not None), "-")

    def as_json(self) -> dict[str, object]:
        """Return the figure as an object for `report.py`."""
        sides = self.sides and self.sides._asdict()
        return {"what": self.what, "measured": self.measured, "unit": self.unit, "bound": self.bound, "sides": sides}

    def row(self) -> tuple[str, str, str, str]:
        """Return the figure as a row of the table."""
        bound = self.bound
        verdict = "-" if bound == "-" else "ok" if self.is_met else "MISSED"
        return self.what, f"{self.measured:.3f} {self.unit}", bound, verdict


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Run:
    """Run a process to its end and discard its stdout; raise RuntimeError with its stderr when it fails.

    The kernel counts this process's own peak as a child's peak too, so the calling process must stay small.
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


def alternate(first: Callable[[], T], second: Callable[[], T], rounds: int = ROUNDS) -> list[tuple[T, T]]:
    """Call both alternately, A B A B, after one uncounted call of each; return the pairs of their results."""
    first()
    second()
    return [(first(), second()) for _ in range(rounds)]


def median_ratio(pairs: Sequence[Pair]) -> float:
    """Return the median of the ratios first / second of all pairs."""
    return statistics.median(first / second for first, second in pairs)


def compare(
    what: str,
    pairs: Sequence[Pair],
    unit: str,
    names: tuple[str, str],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Figure:
    """Print the medians of both sides and the range of the ratios; return the median ratio as a figure."""
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

    If the variable `MLXK2_FIGURES` names a file, append the figures to it as a line of JSON.
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


def make_once(folder: Path, program: str, *words: str) -> Path:
    """Run a program of this folder that makes `folder`, unless it exists; return `folder`, which is always complete.

    The program runs in a separate process, so that this process stays small.
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
    """Yield a folder for a benchmark's files: `keep`, which stays and is used again, or a temporary one."""
    if keep is not None:
        Path(keep).mkdir(parents=True, exist_ok=True)
        yield Path(keep).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="mlxk2-benchmark-") as folder:
        yield Path(folder)
