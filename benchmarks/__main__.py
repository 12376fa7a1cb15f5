"""Run all benchmarks, one after the other: `python benchmarks`. The exit status is 1 where any figure is missed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    "startup.py", "listing.py", "generation.py", "quantized_cpu.py", "download.py", "serving.py", "fairness.py",
)  # fmt: skip


def main() -> int:
    """Run them and return the exit status."""
    missed = []
    for script in SCRIPTS:
        print(f"== {script}", flush=True)
        if subprocess.run([sys.executable, Path(__file__).with_name(script)], check=False).returncode:
            missed.append(script)
    print(f"Missed in: {', '.join(missed)}" if missed else "All figures hold.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
