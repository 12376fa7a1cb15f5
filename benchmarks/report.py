"""Write the figures of a run as tables: all of them into docs/performance.md, five of them into README.md.

python benchmarks/report.py RECORD   write the tables from the file that a run wrote (the variable MLXK2_FIGURES)
python benchmarks/report.py --check  exit 1 when the figures in README.md differ from docs/performance.md
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "performance.md", ROOT / "README.md"
BEGIN, END = "<!-- figures of benchmarks/ -->\n", "<!-- end of figures -->"
# The names of the figures in README.md.
IN_README = (
    "list 100 models",
    "decoding, 4 bit",
    "eight greedy streams, demo",
    "64 connections at once, longest wait for a first token",
    "download 4 files of 64 MB",
)
HEAD = ("", "mlxk2", "instead", "ratio", "bound")
_ARROWS = {"tokens/s": "↑"}  # Units of which more is better.


def write(record: str) -> None:
    """Put the figures of a record, lines of JSON, into both documents."""
    runs = [json.loads(line) for line in record.splitlines()]
    rows = [row_of(figure) for run in runs for figure in run["figures"]]
    _replace(PAGE, f"{runs[0]['machine']}.\n\n" + _table(HEAD, rows))
    _replace(README, readme_table(PAGE.read_text(encoding="utf-8")))


def readme_table(page: str) -> str:
    """Return the table of README.md, made from the rows of docs/performance.md."""
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in page.splitlines() if "|" in line]
    named = {re.sub(r" [↑↓]$", "", row[0]): row for row in rows}
    return _table(HEAD[:4], [named[name][:4] for name in IN_README])


def row_of(figure: dict[str, Any]) -> tuple[str, ...]:
    """Return a row of the table: the name of the figure, both sides, their ratio, and the bound."""
    sides = figure["sides"]
    if sides is None:
        arrow = "↓" if "at most" in figure["bound"] else "↑" if "at least" in figure["bound"] else ""
        measured = _number(figure["measured"], figure["unit"])
        return (f"{figure['what']} {arrow}".strip(), measured, "", "", figure["bound"])
    ours, theirs = (_number(sides[side], sides["unit"]) for side in ("ours", "theirs"))
    arrow = _ARROWS.get(sides["unit"], "↓")
    names = sides["names"]
    return (
        f"{figure['what']} {arrow}",
        f"{ours} (`{names[0]}`)",
        f"{theirs} (`{names[1]}`)",
        f"{figure['measured']:.2f}",
        figure["bound"],
    )


def _number(value: float, unit: str) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}" if unit == "x" else f"{value:.{digits}f} {unit}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    line = "|---|" + "---:|" * (len(head) - 1)
    return "\n".join([f"| {' | '.join(head)} |", line, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _replace(document: Path, table: str) -> None:
    before, begin, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    document.write_text("".join((before, begin, table, end, after)), encoding="utf-8")


def main() -> int:
    """Write or check the tables; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("record", nargs="?", type=Path, help="lines of JSON that a run of the benchmarks wrote")
    parser.add_argument("--check", action="store_true", help="exit 1 when the figures in README.md are out of date")
    args = parser.parse_args()
    if args.record:
        write(args.record.read_text(encoding="utf-8"))
    if args.check:
        return 0 if readme_table(PAGE.read_text(encoding="utf-8")) in README.read_text(encoding="utf-8") else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
