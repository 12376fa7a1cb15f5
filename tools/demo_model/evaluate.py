"""Measure the demo model greedily through mlx-lm: python tools/demo_model/evaluate.py [--write]."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from cases import COUNTING, UNSEEN_TOOLS, Case, cases
from mlx_lm import batch_generate, load

_STRICT = {"capitals", "follow-ups"}
_WITHOUT_FLOOR = {COUNTING, UNSEEN_TOOLS}  # The card reports these figures, but the model need not reach any.
_BEGIN, _END = "<!-- figures -->\n", "<!-- end of figures -->\n"


def answers(model: Any, tokenizer: Any, asked: list[Case]) -> list[str]:
    """Return the model's greedy answer to each case; mark an answer that has no end."""
    found: dict[int, str] = {}
    order = sorted(range(len(asked)), key=lambda i: (len(asked[i].answer) > 150, i))
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        prompts = [_prompt(tokenizer, asked[i]) for i in chosen]
        limit = 500 if any(len(asked[i].answer) > 150 for i in chosen) else 100
        made = batch_generate(model, tokenizer, prompts, max_tokens=limit, return_token_ids=True)
        for i, text, tokens in zip(chosen, made.texts, made.token_ids, strict=True):
            found[i] = text if len(tokens) < limit else f"{text} (no end)"
    return [found[i] for i in range(len(asked))]


def _prompt(tokenizer: Any, case: Case) -> list[int]:
    tokens: list[int] = tokenizer.apply_chat_template(
        case.messages, tools=case.tools or None, add_generation_prompt=True
    )
    return tokens


def is_right(case: Case, text: str) -> bool:
    """Return whether `text` is exactly the answer, with reasoning before it if and only if the case needs reasoning."""
    if not case.thinks:
        return text == case.answer
    match = re.fullmatch(r"<think>\n[^<]+\n</think>\n\n(.*)", text, re.S)
    return match is not None and match.group(1) == case.answer


def table(asked: list[Case], right: list[bool]) -> tuple[str, bool]:
    """Return the figures as a Markdown table, and whether every category reaches its floor."""
    counts = Counter(case.category for case in asked)
    hits: dict[str, int] = defaultdict(int)
    for case, good in zip(asked, right, strict=True):
        hits[case.category] += good
    lines = ["| category | questions | exact answers | floor |", "|---|---:|---:|---:|"]
    holds = True
    for category, count in counts.items():
        floor = 0 if category in _WITHOUT_FLOOR else 95 if category in _STRICT else 90
        share = 100 * hits[category] / count
        holds = holds and share >= floor
        lines.append(f"| {category} | {count} | {share:.1f}% | {floor}% |")
    return "\n".join(lines) + "\n", holds


def write_card(card: Path, figures: str) -> None:
    """Put the figures into the card, between its two marks."""
    text = card.read_text("utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    card.write_text(f"{before}{_BEGIN}{figures}{_END}{after}", "utf-8")


def main() -> int:
    """Print the figures; return 1 if a floor is missed."""
    parser = argparse.ArgumentParser(description="Measure the demo model greedily through mlx-lm.")
    default = Path(__file__).resolve().parents[2] / "mlxk2" / "demo"
    parser.add_argument("--model", type=Path, default=default)
    parser.add_argument("--write", action="store_true", help="put the figures into the model's card")
    parser.add_argument("--misses", action="store_true", help="also print every wrong answer")
    args = parser.parse_args()
    mx.disable_compile()  # On a CPU, compiling kernels takes longer than running these.
    model, tokenizer = load(str(args.model))
    asked = cases()
    found = answers(model, tokenizer, asked)
    right = [is_right(case, text) for case, text in zip(asked, found, strict=True)]
    if args.misses:
        for case, text, good in zip(asked, found, right, strict=True):
            if not good:
                print(f"{case.category}: {case.messages[-1]['content']!r} gave {text!r}, not {case.answer!r}")
    figures, holds = table(asked, right)
    print(figures)
    if args.write:
        write_card(args.model / "README.md", figures)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
