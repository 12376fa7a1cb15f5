"""Measure how fast `mlxk2 run` generates on the CPU with 4-bit weights, compared with `mlx_lm generate`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import completions
import rounds

TOKENS = 16


def main() -> int:
    """Make the model, measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", metavar="DIR", help="make the models here, or use those that are here")
    args = parser.parse_args()
    with rounds.workspace(args.keep) as folder, tempfile.TemporaryDirectory(prefix="mlxk2-kernels-") as kernels:
        model = rounds.make_once(folder / "models", "small_models.py") / "4bit"
        pairs = rounds.alternate(
            lambda: completions.ask_mlxk2(model, TOKENS, Path(kernels)).tokens_per_second(TOKENS),
            lambda: completions.ask_mlx_lm(model, TOKENS, Path(kernels)).tokens_per_second(TOKENS),
        )
    return rounds.verdict([rounds.compare("decoding, 4 bit", pairs, "tokens/s", completions.NAMES, at_least=5)])


if __name__ == "__main__":
    sys.exit(main())
