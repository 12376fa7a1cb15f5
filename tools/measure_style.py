"""Measure how mlxk2/ is written, beside the aim that CONTRIBUTING.md states with the figures.

    python tools/measure_style.py             print the figures
    python tools/measure_style.py --write     renew them in CONTRIBUTING.md
    python tools/measure_style.py --check     exit 1 when an aim is missed, or CONTRIBUTING.md has other figures

A function is as long as its lines from `def` to its end. A blanket except names Exception, BaseException or nothing;
it goes on silently when it neither raises nor hands the exception on. `suppress` of these two always does.
"""

from __future__ import annotations

import argparse
import ast
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mlxk2"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- figures of tools/measure_style.py -->\n", "<!-- end of figures -->"

LENGTHS = (50, 10), (90, 32), (100, 40)  # percentiles of the lengths of functions, and what they may be
MOST_LINES = 400
BLANKET = {"Exception", "BaseException"}

Named = tuple[int, str]  # a number of lines, and what has so many


@dataclass(frozen=True, slots=True)
class Measured:
    """The package in figures: lengths of functions and files, the shortest first; blanket excepts by their places."""

    functions: list[Named]
    files: list[Named]
    blanket: list[str]
    silent: list[str]

    @property
    def percentiles(self) -> list[int]:
        """The lengths of functions at the percentiles that have an aim, by nearest rank."""
        ranks = [math.ceil(percent * len(self.functions) / 100) for percent, _ in LENGTHS]
        return [self.functions[rank - 1][0] for rank in ranks]

    @property
    def per_thousand(self) -> float:
        """Blanket excepts per thousand lines."""
        return len(self.blanket) * 1000 / sum(lines for lines, _ in self.files)


def measure(package: Path) -> Measured:
    """The figures of all modules below a folder."""
    measured = Measured([], [], [], [])
    for path in sorted(package.rglob("*.py")):
        text, place = path.read_text(encoding="utf-8"), path.relative_to(package.parent).as_posix()
        measured.files.append((len(text.splitlines()), place))
        nodes = list(ast.walk(ast.parse(text)))
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        measured.functions.extend((length_of(node), f"{place}:{node.lineno} {node.name}") for node in functions)
        blanket = [node for node in nodes if isinstance(node, ast.ExceptHandler | ast.Call) and is_blanket(node)]
        measured.blanket.extend(f"{place}:{node.lineno}" for node in blanket)
        measured.silent.extend(f"{place}:{node.lineno}" for node in blanket if is_silent(node))
    measured.functions.sort()
    measured.files.sort()
    return measured


def length_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function, its docstring included, its decorators not."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def is_blanket(node: ast.ExceptHandler | ast.Call) -> bool:
    """Whether an except clause, or a call of `suppress`, is for whatever goes wrong."""
    if isinstance(node, ast.ExceptHandler):
        return node.type is None or not BLANKET.isdisjoint(_names(node.type))
    is_suppress = ast.unparse(node.func).split(".")[-1] == "suppress"
    return is_suppress and not BLANKET.isdisjoint(_names(*node.args))


def is_silent(node: ast.ExceptHandler | ast.Call) -> bool:
    """Whether what is for whatever goes wrong goes on as if nothing had happened."""
    if isinstance(node, ast.Call):
        return True
    raises = any(isinstance(part, ast.Raise) for statement in node.body for part in ast.walk(statement))
    return not raises and node.name not in _names(*node.body)


def _names(*nodes: ast.AST) -> set[str]:
    return {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)}


def table(measured: Measured) -> str:
    """The figures beside their aims, as they stand in CONTRIBUTING.md."""
    lengths, aims = (" / ".join(map(str, numbers)) for numbers in (measured.percentiles, (aim for _, aim in LENGTHS)))
    rows = (
        ("of `mlxk2/`", "measured", "at most"),
        ("---", "---", "---"),
        ("lines of a function: median / 90th percentile / longest", lengths, aims),
        ("lines of the longest file", measured.files[-1][0], MOST_LINES),
        ("blanket excepts per thousand lines", f"{measured.per_thousand:.1f}", ""),
        ("those that go on silently", len(measured.silent), 0),
    )
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def faults(measured: Measured, page: str) -> Iterator[str]:
    """Each aim that is missed, and where; and whether the page has other figures."""
    for found, (percent, aim) in zip(measured.percentiles[:-1], LENGTHS[:-1], strict=True):
        if found > aim:
            yield f"{percent}% of the functions have up to {found} lines, at most {aim} are aimed at"
    for sizes, aim in ((measured.functions, LENGTHS[-1][1]), (measured.files, MOST_LINES)):
        yield from (f"{place} has {lines} lines, at most {aim} are aimed at" for lines, place in sizes if lines > aim)
    yield from (f"{place} goes on silently, whatever went wrong" for place in measured.silent)
    if page != renewed(page, measured):
        yield f"{PAGE.name} has other figures; to renew them: python tools/measure_style.py --write"


def renewed(page: str, measured: Measured) -> str:
    """The page with these figures, in the place that is marked for them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    return "".join((before, begin or BEGIN, table(measured), end or END, after))


def main(argv: Sequence[str] | None = None) -> int:
    """Print, write or check the figures; the exit code."""
    parser = argparse.ArgumentParser(description="Measure how mlxk2/ is written.")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--write", action="store_true", help=f"renew the figures in {PAGE.name}")
    ways.add_argument("--check", action="store_true", help=f"exit 1 for a missed aim, or other figures in {PAGE.name}")
    args = parser.parse_args(argv)
    measured, page = measure(PACKAGE), PAGE.read_text(encoding="utf-8")
    if args.check:
        wrong = list(faults(measured, page))
        sys.stderr.writelines(f"{fault}\n" for fault in wrong)
        return 1 if wrong else 0
    if args.write:
        PAGE.write_text(renewed(page, measured), encoding="utf-8")
    print(table(measured), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
