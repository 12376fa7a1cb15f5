"""How fast `mlxk2 run` generates, and how soon its first character comes, against `mlx_lm generate`."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import answers
import rounds
from answers import Answer

TOKENS = 48
# Enough to see a first character, few enough not to wait for the rest.
FIRST_TOKENS = 2
DEMO_PROMPT = "Count from 1 to 20."
DEMO_TOKENS = 200

Ask = Callable[[Path, int, Path], Answer]


def speed(model: Path, kernels: Path) -> list[rounds.Figure]:
    """The speed of decoding, in tokens per second, and the first character with warm kernels, from the same runs."""
    pairs = rounds.paired(
        lambda: answers.ask_mlxk2(model, TOKENS, kernels / "mlxk2"),
        lambda: answers.ask_mlx_lm(model, TOKENS, kernels / "mlx_lm"),
    )
    speeds = [(ours.tokens_per_second(TOKENS), theirs.tokens_per_second(TOKENS)) for ours, theirs in pairs]
    firsts = [(ours.first, theirs.first) for ours, theirs in pairs]
    rounds.tell(f"decoding, {model.name}", speeds, "tokens/s", answers.NAMES)
    rounds.tell(f"first character, {model.name}, warm kernels", firsts, "s", answers.NAMES)
    print(f"the same text in {sum(ours.text == theirs.text for ours, theirs in pairs)} of {len(pairs)} pairs")
    return [
        rounds.Figure(f"speed of decoding, {model.name}", rounds.median_ratio(speeds), at_least=0.97),
        rounds.Figure("first character, warm kernels", rounds.median_ratio(firsts), at_most=1.05),
    ]


def first_character(model: Path, kernels: Path) -> rounds.Figure:
    """The first character when no kernel was compiled before."""
    pairs = rounds.paired(
        lambda: _first(answers.ask_mlxk2, model, kernels),
        lambda: _first(answers.ask_mlx_lm, model, kernels),
    )
    rounds.tell(f"first character, {model.name}, cold kernels", pairs, "s", answers.NAMES)
    return rounds.Figure("first character, cold kernels", rounds.median_ratio(pairs), at_most=1.05)


def _first(ask: Ask, model: Path, kernels: Path) -> float:
    with tempfile.TemporaryDirectory(dir=kernels) as empty:
        return ask(model, FIRST_TOKENS, Path(empty)).first


def demo(kernels: Path) -> rounds.Figure:
    """The speed on the demo model, by the time that the same answer takes."""
    pairs = rounds.paired(
        lambda: answers.ask_mlxk2(answers.DEMO, DEMO_TOKENS, kernels / "mlxk2", DEMO_PROMPT),
        lambda: answers.ask_mlx_lm(answers.DEMO, DEMO_TOKENS, kernels / "mlx_lm", DEMO_PROMPT),
    )
    same = [(theirs.last - theirs.first, ours.last - ours.first) for ours, theirs in pairs if ours.text == theirs.text]
    if not same:
        raise RuntimeError("The demo gave different answers.")
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
        model = rounds.made(folder / "models", "small_models.py") / "float32"
        return rounds.verdict([*speed(model, kernels), first_character(model, kernels), demo(kernels)])


if __name__ == "__main__":
    sys.exit(main())
