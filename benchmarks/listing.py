"""Measure the time and memory of `mlxk2 list --json` on large caches, compared with `hf cache ls`."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import rounds

MODELS = 100
MANY_MODELS = 1000
MEGABYTE = 1_000_000


def _list(cache_dir: Path, memory: Path | None = None) -> rounds.Run:
    program = str(Path(sys.executable).with_name("mlxk2"))
    environment = {"HF_HUB_CACHE": str(cache_dir), "XDG_CACHE_HOME": str(memory or cache_dir.parent / "memory")}
    return rounds.run([program, "list", "--json"], environment)


def _list_for_the_first_time(cache_dir: Path) -> rounds.Run:
    with tempfile.TemporaryDirectory() as memory:
        return _list(cache_dir, Path(memory))


def _hf(cache_dir: Path) -> float:
    program = str(Path(sys.executable).with_name("hf"))
    environment = {"HF_HUB_CACHE": str(cache_dir), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return rounds.run([program, "cache", "ls"], environment).seconds


def measure(few: Path, many: Path) -> list[rounds.Figure]:
    """Compare with `hf cache ls` on the few models, and the many models with the few."""
    peak = statistics.median(_list_for_the_first_time(few).peak_bytes for _ in range(rounds.ROUNDS))
    names = ("mlxk2 list --json", "hf cache ls")
    return [
        rounds.compare(
            f"list {MODELS} models",
            rounds.alternate(lambda: _list(few).seconds, lambda: _hf(few)),
            "s",
            names,
            at_most=0.25,
        ),
        rounds.compare(
            f"list {MODELS} models for the first time",
            rounds.alternate(lambda: _list_for_the_first_time(few).seconds, lambda: _hf(few)),
            "s",
            names,
        ),
        rounds.compare(
            f"list {MANY_MODELS} models, compared with {MODELS}",
            rounds.alternate(lambda: _list(many).seconds, lambda: _list(few).seconds),
            "s",
            (f"{MANY_MODELS} models", f"{MODELS} models"),
            at_most=10,
        ),
        rounds.Figure(f"peak memory of listing {MODELS} models", peak / MEGABYTE, at_most=30, unit="MB"),
    ]


def main() -> int:
    """Build the caches, measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", metavar="DIR", help="make the caches here, or use those that are here")
    args = parser.parse_args()
    with rounds.workspace(args.keep) as folder:
        counts = (str(MODELS), str(MANY_MODELS))
        few, many = (rounds.make_once(folder / count, "big_cache.py", count) / "hub" for count in counts)
        return rounds.verdict(measure(few, many))


if __name__ == "__main__":
    sys.exit(main())
