"""Measure how long `mlxk2 --version` takes, compared with a Python that does nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import rounds

ROUNDS = 25


def main() -> int:
    """Measure, print, and return the exit status."""
    program = str(Path(sys.executable).with_name("mlxk2"))
    pairs = rounds.alternate(
        lambda: rounds.run([program, "--version"]).seconds,
        lambda: rounds.run([sys.executable, "-c", "pass"]).seconds,
        ROUNDS,
    )
    names = ("mlxk2 --version", "python -c pass")
    return rounds.verdict([rounds.compare("the version", pairs, "s", names, at_most=3)])


if __name__ == "__main__":
    sys.exit(main())
