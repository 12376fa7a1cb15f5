"""Measure the speed and the time to the first character of `mlxk2 run`, compared with `mlx_lm generate`."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import completions
import rounds
from completions import Completion

TOKENS = 48
FIRST_TOKENS = 2  # Enough for a first character, and no long wait for the rest.
# More rounds than usual: these two seconds are mostly imports, which vary by more than the bound allows.
WARM_ROUNDS = 15
DEMO_PROMPT = "Count from 1 to 20."
DEMO_TOKENS = 200

Ask = Callable[[Path, int, Path], Completion]


def speed(model: Path, kernels: Path) -> rounds.Figure:
    """Measure the speed of decoding, in tokens per second."""
    pairs = rounds.alternate(
        lambda: completions.ask_mlxk2(model, TOKENS, kernels / "mlxk2"),
        lambda: completions.ask_mlx_lm(model, TOKENS, kernels / "mlx_lm"),
    )
    speeds = [(ours.tokens_per_second(TOKENS), theirs.tokens_per_second(TOKENS)) for ours, theirs in pairs]
    print(f"the same text in {sum(ours.text == theirs.text for ours, theirs in pairs)} of {len(pairs)} pairs")
    return rounds.compare(f"decoding, {model.name}", speeds, "tokens/s", completions.NAMES, at_least=0.97)


def first_character_warm(model: Path, kernels: Path) -> rounds.Figure:
    """Measure the time to the first character when the kernels are already compiled."""
    return _first_character(
        "warm kernels",
        WARM_ROUNDS,
        lambda: completions.ask_mlxk2(model, FIRST_TOKENS, kernels / "mlxk2").first,
        lambda: completions.ask_mlx_lm(model, FIRST_TOKENS, kernels / "mlx_lm").first,
    )


def first_character_cold(model: Path, kernels: Path) -> rounds.Figure:
    """Measure the time to the first character when no kernel is compiled yet."""
    return _first_character(
        "cold kernels",
        rounds.ROUNDS,
        lambda: _in_empty_folder(completions.ask_mlxk2, model, kernels).first,
        lambda: _in_empty_folder(completions.ask_mlx_lm, model, kernels).first,
    )


def _first_character(kind: str, count: int, first: Callable[[], float], second: Callable[[], float]) -> rounds.Figure:
    pairs = rounds.alternate(first, second, count)
    return rounds.compare(f"first character, {kind}", pairs, "s", completions.NAMES, at_most=1.05)


def _in_empty_folder(ask: Ask, model: Path, kernels: Path) -> Completion:
    with tempfile.TemporaryDirectory(dir=kernels) as empty:
        return ask(model, FIRST_TOKENS, Path(empty))


def demo(kernels: Path) -> rounds.Figure:
    """Measure the speed on the demo model by the time of the same completion."""
    pairs = rounds.alternate(
        lambda: completions.ask_mlxk2(completions.DEMO, DEMO_TOKENS, kernels / "mlxk2", DEMO_PROMPT),
        lambda: completions.ask_mlx_lm(completions.DEMO, DEMO_TOKENS, kernels / "mlx_lm", DEMO_PROMPT),
    )
    same = [(theirs.last - theirs.first, ours.last - ours.first) for ours, theirs in pairs if ours.text == theirs.text]
    if not same:
        raise RuntimeError("The demo gave different completions.")
    ratio = statistics.median(theirs / ours for theirs, ours in same)
    print(f"demo: {len(pairs[0][0].text)} characters, the same text in {len(same)} of {len(pairs)} pairs")
    return rounds.Figure("speed of decoding, demo", ratio)


def main() -> int:
    """Make the models, measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", metavar="DIR", help="make the models here, or use those that are here")
    args = parser.parse_args()
    with rounds.workspace(args.keep) as folder, tempfile.TemporaryDirectory(prefix="mlxk2-kernels-") as temporary:
        kernels = Path(temporary)
        for side in ("mlxk2", "mlx_lm"):
            (kernels / side).mkdir()
        model = rounds.make_once(folder / "models", "small_models.py") / "float32"
        figures = (measure(model, kernels) for measure in (speed, first_character_warm, first_character_cold))
        return rounds.verdict([*figures, demo(kernels)])


if __name__ == "__main__":
    sys.exit(main())
