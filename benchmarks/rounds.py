"""Measure two programs against each other: paired rounds, medians of ratios, and a table of verdicts."""

from __future__ import annotations

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


class Figure(NamedTuple):
    """What was measured, and the bound that it must keep; a figure without one is only told."""

    what: str
    measured: float
    at_most: float | None = None
    at_least: float | None = None
    unit: str = "x"

    @property
    def is_met(self) -> bool:
        """Whether the bound is kept."""
        below = self.at_most is None or self.measured <= self.at_most
        return below and (self.at_least is None or self.measured >= self.at_least)

    def row(self) -> tuple[str, str, str, str]:
        """The figure as a row of the table."""
        bounds = (("at most", self.at_most), ("at least", self.at_least))
        bound = next((f"{word} {value:g} {self.unit}" for word, value in bounds if value is not None), "-")
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
    """The median of first to second, each pair taken by itself."""
    return statistics.median(first / second for first, second in pairs)


def tell(what: str, pairs: Sequence[Pair], unit: str, names: tuple[str, str]) -> None:
    """Print the medians of both sides, and how far the ratios of the pairs lie apart."""
    first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    print(
        f"{what}: {names[0]} {first:.3f} {unit}, {names[1]} {second:.3f} {unit}, "
        f"{len(pairs)} pairs, ratios {ratios[0]:.3f} to {ratios[-1]:.3f}",
        flush=True,
    )


def verdict(figures: Sequence[Figure]) -> int:
    """Print the machine and a table of the figures; the exit status, 1 when a bound is missed."""
    rows = [("figure", "measured", "bound", ""), *(figure.row() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    print(f"\n{_machine()}\n")
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0 if all(figure.is_met for figure in figures) else 1


def made(folder: Path, program: str, *words: str) -> Path:
    """The folder that a program beside this one makes: made once, and whole or not at all.

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
    """A folder for what a benchmark makes: `keep`, which stays and is used again, or one that goes."""
    if keep is not None:
        Path(keep).mkdir(parents=True, exist_ok=True)
        yield Path(keep).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="mlxk2-benchmark-") as folder:
        yield Path(folder)
