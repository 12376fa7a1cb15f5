"""Measure how mlxk2/ is written, beside the aim that CONTRIBUTING.md states with the figures.

    python tools/measure_style.py             print the figures
    python tools/measure_style.py --write     renew them in CONTRIBUTING.md
    python tools/measure_style.py --check     exit 1 when an aim is missed, or CONTRIBUTING.md has other figures

A function is as long as its lines from `def` to its end. A blanket except names Exception, BaseException or nothing;
it goes on silently when it neither raises nor hands the exception on. `suppress` of these two always does.

A folder's `__init__.py` is not counted. A circle is a group of files of which each one imports all others, directly or
by way of others; every import counts, also one in a function or for types only. A private function has one caller when
its file mentions its name once beside the definition.
"""

from __future__ import annotations

import argparse
import ast
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mlxk2"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- figures of tools/measure_style.py -->\n", "<!-- end of figures -->"

LENGTHS = (50, 10), (90, 32), (100, 40)  # percentiles of the lengths of functions, and what they may be
MAX_LINES = 400
MAX_FILES = 12  # of a folder
SHORT_LINES, MAX_SHORT = 60, 10  # modules with fewer lines, and how many there may be
MAX_ONE_CALLER = 8  # per thousand lines
BLANKET = {"Exception", "BaseException"}

Named = tuple[int, str]  # a number of lines, and what has so many


@dataclass(frozen=True, slots=True)
class Measured:
    """The package in figures: lengths of functions and files, numbers of files in folders, the smallest first.

    The rest are places: of blanket excepts, of circles of files, and of private functions with one caller.
    """

    functions: list[Named]
    files: list[Named]
    folders: list[Named]
    circles: list[str]
    one_caller: list[str]
    blanket: list[str]
    silent: list[str]

    @property
    def percentiles(self) -> list[int]:
        """The lengths of functions at the percentiles that have an aim, by nearest rank."""
        ranks = [math.ceil(percent * len(self.functions) / 100) for percent, _ in LENGTHS]
        return [self.functions[rank - 1][0] for rank in ranks]

    @property
    def short(self) -> list[Named]:
        """The modules that are shorter than a noun of the field needs."""
        return [(lines, place) for lines, place in self.files if lines < SHORT_LINES and not _is_init(place)]

    def per_thousand(self, places: Sequence[str]) -> float:
        """Return how many of these places there are per thousand lines."""
        return len(places) * 1000 / sum(lines for lines, _ in self.files)


def measure(package: Path) -> Measured:
    """Return the figures of all modules below a folder."""
    measured = Measured([], [], [], [], [], [], [])
    imports: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*.py")):
        text, place = path.read_text(encoding="utf-8"), path.relative_to(package.parent).as_posix()
        measured.files.append((len(text.splitlines()), place))
        tree = ast.parse(text)
        nodes = list(ast.walk(tree))
        imports[module_of(place)] = set(imported(nodes))
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        measured.functions.extend((length_of(node), f"{place}:{node.lineno} {node.name}") for node in functions)
        measured.one_caller.extend(f"{place}:{node.lineno} {node.name}" for node in with_one_caller(tree))
        blanket = [node for node in nodes if isinstance(node, ast.ExceptHandler | ast.Call) and is_blanket(node)]
        measured.blanket.extend(f"{place}:{node.lineno}" for node in blanket)
        measured.silent.extend(f"{place}:{node.lineno}" for node in blanket if is_silent(node))
    folders = Counter(place.rpartition("/")[0] for _, place in measured.files if not _is_init(place))
    measured.folders.extend((count, folder) for folder, count in folders.items())
    measured.circles.extend(", ".join(circle) for circle in circles(imports))
    for figures in (measured.functions, measured.files, measured.folders):
        figures.sort()
    return measured


def _is_init(place: str) -> bool:
    return place.endswith("/__init__.py")


def module_of(place: str) -> str:
    """Convert `mlxk2/cli/main.py` to `mlxk2.cli.main`; a package's `__init__.py` is the package itself."""
    return place.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Yield the names of a module's imports; `from a import b` gives `a.b`, which may be a module or a name in `a`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def circles(imports: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Yield the groups of modules that import each other, also by way of others; each group in alphabetical order."""
    reached: dict[str, set[str]] = {}
    for module in imports:
        found: set[str] = set()
        pending = [module]
        while pending:
            names = imports[pending.pop()]
            modules = {name if name in imports else name.rpartition(".")[0] for name in names}
            new = modules & imports.keys() - found
            found |= new
            pending += new
        reached[module] = found
    for module, found in reached.items():
        circle = sorted(name for name in found if module in reached[name])
        if circle and module == circle[0]:
            yield circle


def with_one_caller(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the private functions and methods that their file mentions once."""
    mentions = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    mentions.update(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    pending: list[ast.stmt] = list(tree.body)
    for node in pending:
        if isinstance(node, ast.ClassDef):
            pending += node.body
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            is_private = node.name.startswith("_") and not node.name.startswith("__")
            if is_private and mentions[node.name] == 1:
                yield node


def length_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines of a function, its docstring included, its decorators not."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def is_blanket(node: ast.ExceptHandler | ast.Call) -> bool:
    """Return whether an except clause, or a call of `suppress`, catches every error."""
    if isinstance(node, ast.ExceptHandler):
        return node.type is None or not BLANKET.isdisjoint(_names(node.type))
    is_suppress = ast.unparse(node.func).split(".")[-1] == "suppress"
    return is_suppress and not BLANKET.isdisjoint(_names(*node.args))


def is_silent(node: ast.ExceptHandler | ast.Call) -> bool:
    """Return whether a handler of every error continues as if nothing had happened."""
    if isinstance(node, ast.Call):
        return True
    raises = any(isinstance(part, ast.Raise) for statement in node.body for part in ast.walk(statement))
    return not raises and node.name not in _names(*node.body)


def _names(*nodes: ast.AST) -> set[str]:
    return {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)}


def table(measured: Measured) -> str:
    """Return the figures beside their aims, as they stand in CONTRIBUTING.md."""
    lengths, aims = (" / ".join(map(str, numbers)) for numbers in (measured.percentiles, (aim for _, aim in LENGTHS)))
    rows = (
        ("of `mlxk2/`", "measured", "at most"),
        ("---", "---", "---"),
        ("lines of a function: median / 90th percentile / longest", lengths, aims),
        ("lines of the longest file", measured.files[-1][0], MAX_LINES),
        ("files of the fullest folder", measured.folders[-1][0], MAX_FILES),
        ("circles of files that import each other", len(measured.circles), 0),
        (f"modules under {SHORT_LINES} lines", len(measured.short), MAX_SHORT),
        (
            "private functions with one caller per thousand lines",
            f"{measured.per_thousand(measured.one_caller):.1f}",
            MAX_ONE_CALLER,
        ),
        ("blanket excepts per thousand lines", f"{measured.per_thousand(measured.blanket):.1f}", ""),
        ("those that go on silently", len(measured.silent), 0),
    )
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def faults(measured: Measured, page: str) -> Iterator[str]:
    """Yield each aim that is missed, and where; and whether the page has other figures."""
    for found, (percent, aim) in zip(measured.percentiles[:-1], LENGTHS[:-1], strict=True):
        if found > aim:
            yield f"{percent}% of the functions have up to {found} lines, at most {aim} are aimed at"
    for sizes, aim in ((measured.functions, LENGTHS[-1][1]), (measured.files, MAX_LINES)):
        yield from (f"{place} has {lines} lines, at most {aim} are aimed at" for lines, place in sizes if lines > aim)
    for count, folder in measured.folders:
        if count > MAX_FILES:
            yield f"{folder} has {count} files, at most {MAX_FILES} are aimed at"
    yield from (f"{circle} import each other" for circle in measured.circles)
    if len(measured.short) > MAX_SHORT:
        places = ", ".join(place for _, place in measured.short)
        yield f"{len(measured.short)} modules have under {SHORT_LINES} lines, at most {MAX_SHORT} may: {places}"
    rate = measured.per_thousand(measured.one_caller)
    if rate > MAX_ONE_CALLER:
        places = ", ".join(measured.one_caller)
        yield f"{rate:.1f} private functions per thousand lines have one caller, at most {MAX_ONE_CALLER} may: {places}"
    yield from (f"{place} goes on silently, whatever went wrong" for place in measured.silent)
    if page != renewed(page, measured):
        yield f"{PAGE.name} has other figures; to renew them: python tools/measure_style.py --write"


def renewed(page: str, measured: Measured) -> str:
    """Return the page with these figures, in the place that is marked for them."""
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
