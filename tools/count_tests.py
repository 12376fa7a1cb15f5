"""Count the tests as pytest collects them, for TESTING.md.

    python tools/count_tests.py           print the tables
    python tools/count_tests.py --write   put them into TESTING.md
    python tools/count_tests.py --check   exit 1 when TESTING.md is out of date

The check allows a suite to grow: a number may be wrong by a tenth. But the table must list exactly the existing test
files, and every `pytest` command on the page must select a test.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "TESTING.md"

KINDS = {
    "the JSON API": "pytest -m spec",
    "units and commands": 'pytest -m "not (spec or e2e or wet or issue27 or server_real)"',
    "end to end": "pytest -m e2e",
    "opt-in": 'pytest -m "wet or issue27 or server_real"',
    "all": "pytest",
}
TOLERANCE = 0.1

_TABLE = "<!-- {name}: python tools/count_tests.py --write -->\n{table}<!-- end -->"
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:\w+=\S+ )*pytest(?: [^`\n]*)?)`")
_LINE = re.compile(r"^((?:\w+=\S+ )*pytest\b[^#\n]*)", re.MULTILINE)


class Suite:
    """The collected tests."""

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []
        self._select: Callable[[list[pytest.Item]], None]
        self._options: argparse.Namespace

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Save the collected tests, and pytest's own function that selects by -m and -k."""
        plugin = session.config.pluginmanager.getplugin("mark")
        self._select = lambda items: plugin.pytest_collection_modifyitems(items, session.config)
        self._options = session.config.option
        self.items = list(session.items)

    def count(self, command: str) -> int:
        """Return the number of tests that a command selects by -m, by -k or by paths."""
        parser = argparse.ArgumentParser()
        parser.add_argument("-m", default="")
        parser.add_argument("-k", default="")
        args, rest = parser.parse_known_args(shlex.split(command.partition("pytest")[2]))
        self._options.markexpr, self._options.keyword = args.m, args.k
        selected = list(self.items)
        self._select(selected)
        places = tuple(word for word in rest if word.startswith("tests_2.0"))
        return sum(item.nodeid.startswith(places or "") for item in selected)

    def files(self) -> dict[str, int]:
        """Return the test files, each with its number of tests."""
        return dict(sorted(Counter(item.nodeid.partition("::")[0] for item in self.items).items()))


def collect() -> Suite:
    """Collect the tests as `pytest` without arguments does."""
    suite, output = Suite(), io.StringIO()
    with contextlib.redirect_stdout(output):
        code = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}"], plugins=[suite])
    if code:
        sys.exit(output.getvalue())
    return suite


def kinds(suite: Suite) -> str:
    """Return the table of the kinds of tests."""
    rows = [f"| {kind} | {suite.count(command):,} | `{command}` |" for kind, command in KINDS.items()]
    return "\n".join(["| kind | tests | only these |", "|---|---:|---|", *rows])


def files(suite: Suite) -> str:
    """Return the table of the test files."""
    rows = [f"| `{name.partition('/')[2]}` | {count} | {promise(name)} |" for name, count in suite.files().items()]
    return "\n".join(["| file | tests | what it is about |", "|---|---:|---|", *rows])


def promise(name: str) -> str:
    """Return the first line of a file's docstring."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.search(r'^"""(.+?)("""|$)', text, re.MULTILINE)
    return found.group(1).removesuffix(".").replace("|", "\\|") if found else ""


TABLES: dict[str, Callable[[Suite], str]] = {"kinds": kinds, "files": files}


def _place(name: str) -> re.Pattern[str]:
    """Return the pattern of a table on the page."""
    return re.compile(re.escape(_TABLE.format(name=name, table="\0")).replace("\0", "(.*?)"), re.DOTALL)


def update(page: str, suite: Suite) -> str:
    """Return the page with current tables."""
    for name, table in TABLES.items():
        text = _TABLE.format(name=name, table=f"\n{table(suite)}\n\n")
        page = _place(name).sub(lambda _, text=text: text, page)  # type: ignore[misc]
    return page


def commands(page: str) -> list[str]:
    """Return the pytest commands on a page, in its text and in its code blocks."""
    lines = [line.strip() for block in _BLOCK.findall(page) for line in _LINE.findall(block)]
    return _INLINE.findall(page) + lines


def faults(page: str, suite: Suite) -> Iterator[str]:
    """Yield each statement on the page that is not true."""
    tables = {name: found.group(1) if (found := _place(name).search(page)) else "" for name in TABLES}
    for kind, command in KINDS.items():
        stated = re.search(rf"^\| {re.escape(kind)} \| ([\d,]+) \|", tables["kinds"], re.MULTILINE)
        count = suite.count(command)
        if not stated or abs(int(stated[1].replace(",", "")) - count) > TOLERANCE * count:
            yield f"{kind}: there are {count} tests, but the page says {stated[1] if stated else 'nothing'}"
    listed = {f"tests_2.0/{name}" for name in re.findall(r"^\| `([^`]+)` \|", tables["files"], re.MULTILINE)}
    yield from (f"{name} is only in the table or only in the tree" for name in sorted(listed ^ set(suite.files())))
    yield from (f"this command selects no test: {command}" for command in commands(page) if not suite.count(command))


def main(argv: Sequence[str] | None = None) -> int:
    """Print, write or check the tables, and return the exit code."""
    parser = argparse.ArgumentParser(description="Count the tests, for TESTING.md.")
    parser.add_argument("--write", action="store_true", help="put the tables into TESTING.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when TESTING.md is out of date")
    args = parser.parse_args(argv)
    suite = collect()
    page = GUIDE.read_text(encoding="utf-8")
    if args.check:
        found = list(faults(page, suite))
        print(*found, sep="\n", end="\n" if found else "")
        return 1 if found else 0
    if args.write:
        GUIDE.write_text(update(page, suite), encoding="utf-8")
    else:
        print(*(table(suite) for table in TABLES.values()), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
