"""Run all benchmarks, one after the other: `python benchmarks`. The exit status is 1 if any figure misses its bound.

With `--write` the figures become the tables of docs/performance.md and README.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import report
import rounds

SCRIPTS = (
    "startup.py",
    "listing.py",
    "generation.py",
    "quantized_cpu.py",
    "download.py",
    "serving.py",
    "fairness.py",
)


def main() -> int:
    """Run all benchmarks and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the figures into docs/performance.md and README.md")
    args = parser.parse_args()
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "figures"
        for script in SCRIPTS:
            print(f"== {script}", flush=True)
            command = [sys.executable, Path(__file__).with_name(script)]
            environment = {**os.environ, rounds.RECORD_VARIABLE: str(record)}
            if subprocess.run(command, check=False, env=environment).returncode:
                missed.append(script)
        if args.write:
            report.write(record.read_text(encoding="utf-8"))
    print(f"Missed in: {', '.join(missed)}" if missed else "All figures hold.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
