"""Measure how mlxk2/ is written, and compare the figures with the limits in CONTRIBUTING.md.

    python tools/measure_style.py             print the figures
    python tools/measure_style.py --write     update them in CONTRIBUTING.md
    python tools/measure_style.py --check     exit 1 when a limit is exceeded, or CONTRIBUTING.md is out of date

The length of a function is the number of its lines from `def` to its end. A blanket except catches Exception,
BaseException or everything. It is silent if it neither raises nor uses the exception; `suppress` with one of these two
is always silent.

A folder's `__init__.py` is not counted. A circle is a group of files in which each file imports all others, directly or
indirectly; imports in functions and imports only for types count too. A private function has one caller if its file
mentions its name exactly once besides the definition.
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

LENGTHS = (50, 10), (90, 32), (100, 40)  # Percentiles of the lengths of functions, and their limits.
MAX_LINES = 400
MAX_FILES = 12  # In a folder.
SHORT_LINES, MAX_SHORT = 60, 10  # A module with fewer lines is short; the largest number of short modules.
MAX_ONE_CALLER = 8  # Per thousand lines.
BLANKET = {"Exception", "BaseException"}

Named = tuple[int, str]  # A number of lines or files, and the place that has it.


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of the package: lengths of functions and files, and numbers of files in folders, sorted.

    The other fields are places: circles of files, private functions with one caller, blanket and silent excepts.
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
        """The lengths of functions at the percentiles that have a limit, by nearest rank."""
        ranks = [math.ceil(percent * len(self.functions) / 100) for percent, _ in LENGTHS]
        return [self.functions[rank - 1][0] for rank in ranks]

    @property
    def short(self) -> list[Named]:
        """The short modules."""
        return [(lines, place) for lines, place in self.files if lines < SHORT_LINES and not _is_init(place)]

    def per_thousand(self, places: Sequence[str]) -> float:
        """Return the number of these places per thousand lines."""
        return len(places) * 1000 / sum(lines for lines, _ in self.files)


def measure(package: Path) -> Measured:
    """Measure all modules below a folder."""
    measured = Measured([], [], [], [], [], [], [])
    imports: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*.py")):
        text, place = path.read_text(encoding="utf-8"), path.relative_to(package.parent).as_posix()
        measured.files.append((len(text.splitlines()), place))
        tree = ast.parse(text)
        nodes = list(ast.walk(tree))
        imports[module_of(place)] = set(find_imports(nodes))
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
    """Convert `mlxk2/cli/main.py` to `mlxk2.cli.main`; convert an `__init__.py` to the name of its package."""
    return place.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def find_imports(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Yield the names of a module's imports; `from a import b` gives `a.b`, which is a module or a name in `a`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def circles(imports: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Yield the groups of modules that import each other, directly or indirectly; each group is sorted."""
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
    """Return the number of lines of a function, with its docstring and without its decorators."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def is_blanket(node: ast.ExceptHandler | ast.Call) -> bool:
    """Return whether an except clause, or a call of `suppress`, catches every error."""
    if isinstance(node, ast.ExceptHandler):
        return node.type is None or not BLANKET.isdisjoint(_names(node.type))
    is_suppress = ast.unparse(node.func).split(".")[-1] == "suppress"
    return is_suppress and not BLANKET.isdisjoint(_names(*node.args))


def is_silent(node: ast.ExceptHandler | ast.Call) -> bool:
    """Return whether a blanket handler ignores the error."""
    if isinstance(node, ast.Call):
        return True
    raises = any(isinstance(part, ast.Raise) for statement in node.body for part in ast.walk(statement))
    return not raises and node.name not in _names(*node.body)


def _names(*nodes: ast.AST) -> set[str]:
    return {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)}


def table(measured: Measured) -> str:
    """Return the table of figures and limits for CONTRIBUTING.md."""
    lengths, limits = (
        " / ".join(map(str, numbers)) for numbers in (measured.percentiles, (most for _, most in LENGTHS))
    )
    rows = (
        ("of `mlxk2/`", "measured", "at most"),
        ("---", "---", "---"),
        ("lines of a function: median / 90th percentile / longest", lengths, limits),
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
    """Yield a message for each exceeded limit with its places, and one if the page has old figures."""
    for found, (percent, most) in zip(measured.percentiles[:-1], LENGTHS[:-1], strict=True):
        if found > most:
            yield f"{percent}% of the functions have up to {found} lines, the limit is {most}"
    for sizes, most in ((measured.functions, LENGTHS[-1][1]), (measured.files, MAX_LINES)):
        yield from (f"{place} has {lines} lines, the limit is {most}" for lines, place in sizes if lines > most)
    for count, folder in measured.folders:
        if count > MAX_FILES:
            yield f"{folder} has {count} files, the limit is {MAX_FILES}"
    yield from (f"{circle} import each other" for circle in measured.circles)
    if len(measured.short) > MAX_SHORT:
        places = ", ".join(place for _, place in measured.short)
        yield f"{len(measured.short)} modules have under {SHORT_LINES} lines, the limit is {MAX_SHORT}: {places}"
    rate = measured.per_thousand(measured.one_caller)
    if rate > MAX_ONE_CALLER:
        places = ", ".join(measured.one_caller)
        yield f"{rate:.1f} private functions per 1,000 lines have one caller, the limit is {MAX_ONE_CALLER}: {places}"
    yield from (f"{place} ignores every error silently" for place in measured.silent)
    if page != update(page, measured):
        yield f"{PAGE.name} has old figures; to update them: python tools/measure_style.py --write"


def update(page: str, measured: Measured) -> str:
    """Return the page with these figures between its two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    return "".join((before, begin or BEGIN, table(measured), end or END, after))


def main(argv: Sequence[str] | None = None) -> int:
    """Print, write or check the figures, and return the exit code."""
    parser = argparse.ArgumentParser(description="Measure how mlxk2/ is written.")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--write", action="store_true", help=f"update the figures in {PAGE.name}")
    ways.add_argument(
        "--check", action="store_true", help=f"exit 1 for an exceeded limit or old figures in {PAGE.name}"
    )
    args = parser.parse_args(argv)
    measured, page = measure(PACKAGE), PAGE.read_text(encoding="utf-8")
    if args.check:
        wrong = list(faults(measured, page))
        sys.stderr.writelines(f"{fault}\n" for fault in wrong)
        return 1 if wrong else 0
    if args.write:
        PAGE.write_text(update(page, measured), encoding="utf-8")
    print(table(measured), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
