"""The tool that measures the code style, run on packages with known figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "measure_style.py"
MARKED = "# Page\n\n<!-- figures of tools/measure_style.py -->\n<!-- end of figures -->\n\nThe end.\n"


class Project:
    """A package of one module, its page, and a copy of the tool."""

    def __init__(self, root: Path) -> None:
        self.tool = root / "tools" / TOOL.name
        self.page = root / "CONTRIBUTING.md"
        self._room = root / "mlxk2" / "room"
        for folder in (self.tool.parent, self._room):
            folder.mkdir(parents=True)
        self.tool.write_bytes(TOOL.read_bytes())
        self.page.write_text(MARKED)

    def write(self, *parts: str, module: str = "module") -> None:
        """Write a module with these parts."""
        (self._room / f"{module}.py").write_text("".join(f"{part}\n" for part in parts))

    def figure(self, name: str) -> str:
        """Return the figure in the row whose name begins with this text."""
        return next(line for line in self.run()[1].splitlines() if line.startswith(f"| {name}")).split(" | ")[1]

    def run(self, *words: str) -> tuple[int, str, str]:
        """Run the tool; return its exit code, stdout and stderr."""
        done = subprocess.run([sys.executable, self.tool, *words], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def function(lines: int, name: str = "f") -> str:
    """Return a function with this many lines from its `def` on, below a decorator, which does not count."""
    return "\n".join(["@cache", f"def {name}():", *["    pass"] * (lines - 1)])


def handler(clause: str, *body: str) -> str:
    return "\n".join(["try:", "    pass", f"{clause}:", *(f"    {line}" for line in body)])


def test_the_figures_of_a_package_are_measured(project: Project) -> None:
    project.write(*(function(lines) for lines in (2, 3, 4, 5, 6, 7, 8, 9, 10, 41)), handler("except", "raise"))
    code, out, _ = project.run()
    lines = [line.strip("| ").split(" | ") for line in out.splitlines()[2:]]
    assert code == 0
    functions, files, structure, excepts = lines[:1], lines[1:2], lines[2:6], lines[6:]
    assert [line[1:] for line in (*functions, *files)] == [["6 / 10 / 41", "10 / 32 / 40"], ["109", "400"]]
    assert [line[1:] for line in structure] == [["1", "12"], ["0", "0"], ["0", "10"], ["0.0", "8"]]
    assert [line[1:] for line in excepts] == [["9.2"], ["0", "0"]]


def test_written_figures_pass_the_check_until_the_code_changes(project: Project) -> None:
    project.write(function(5))
    assert project.run("--check")[0] == 1
    assert project.run("--write")[0] == 0
    page = project.page.read_text()
    assert page.startswith("# Page\n\n") and page.endswith("\n\nThe end.\n") and "| 5 / 5 / 5 |" in page
    assert project.run("--check") == (0, "", "")
    project.write(function(6))
    code, _, faults = project.run("--check")
    assert code == 1
    assert "CONTRIBUTING.md has old figures" in faults and "--write" in faults


def test_a_page_without_the_mark_fails_the_check(project: Project) -> None:
    project.write(function(5))
    project.page.write_text("# Page\n")
    assert project.run("--check")[0] == 1


MISSED = {
    "50% of the functions have up to 11 lines": [function(11)] * 9,
    "90% of the functions have up to 33 lines": [*[function(2)] * 8, function(33), function(33)],
    "mlxk2/room/module.py:29 long has 41 lines": [*[function(2)] * 9, function(41, "long")],
    "mlxk2/room/module.py has 401 lines": [function(2), *["pass"] * 398],
    "mlxk2/room/module.py:3 ignores every error silently": [handler("except Exception", "pass"), function(2)],
}


@pytest.mark.parametrize("fault", MISSED)
def test_a_missed_aim_is_reported_with_its_place(project: Project, fault: str) -> None:
    project.write(*MISSED[fault])
    project.run("--write")
    code, _, faults = project.run("--check")
    assert (code, faults.count("\n")) == (1, 1)
    assert fault in faults


def test_a_full_folder_and_too_many_short_modules_are_reported(project: Project) -> None:
    for number in range(13):
        project.write(function(2), module=f"m{number}")
    project.run("--write")
    code, _, faults = project.run("--check")
    assert (code, faults.count("\n")) == (1, 2)
    assert "mlxk2/room has 13 files" in faults
    assert "13 modules have under 60 lines" in faults and "mlxk2/room/m12.py" in faults


def test_a_circle_and_a_function_with_one_caller_are_reported(project: Project) -> None:
    project.write("import mlxk2.room.b", function(2, "_f"), "_f()", module="a")
    project.write("import mlxk2.room.a", module="b")
    project.run("--write")
    code, _, faults = project.run("--check")
    assert (code, faults.count("\n")) == (1, 2)
    assert "mlxk2.room.a, mlxk2.room.b import each other" in faults
    assert "have one caller" in faults and "mlxk2/room/a.py:3 _f" in faults


SILENT = [
    handler("except", "pass"),
    handler("except BaseException", "print('oh')"),
    handler("except (OSError, Exception) as error", "pass"),
    "with suppress(Exception): pass",
    "with contextlib.suppress(OSError, BaseException): pass",
]
HEARD = [
    handler("except", "raise"),
    handler("except Exception as error", "if error:", "    raise Other from error"),
    handler("except Exception as error", "report(error)"),
]
NARROW = [handler("except (OSError, ValueError)", "pass"), "with suppress(OSError): pass"]


@pytest.mark.parametrize(
    ("part", "blanket", "silent"),
    [*((p, 1, 1) for p in SILENT), *((p, 1, 0) for p in HEARD), *((p, 0, 0) for p in NARROW)],
)
def test_blanket_and_silent_excepts_are_counted(project: Project, part: str, blanket: int, silent: int) -> None:
    project.write(function(2), part)
    rate, goes_on = (line.strip("| ").split(" | ") for line in project.run()[1].splitlines()[-2:])
    assert (rate[1] != "0.0", int(goes_on[1])) == (bool(blanket), silent)


def test_the_fullest_folder_is_counted_without_its_init(project: Project) -> None:
    for module in ("__init__", "a", "b", "c"):
        project.write(function(2), module=module)
    assert project.figure("files of the fullest folder") == "3"


def test_short_modules_are_counted_without_inits(project: Project) -> None:
    for module, lines in (("__init__", 2), ("short", 58), ("long", 59)):
        project.write(function(lines), module=module)
    assert project.figure("modules under 60 lines") == "1"


def circle(*modules: str) -> dict[str, str]:
    """Return modules that each import the one before, and the first one the last."""
    return {module: f"import mlxk2.room.{modules[number - 1]}" for number, module in enumerate(modules)}


CIRCLES = {
    "two": (circle("a", "b"), "1"),
    "three": (circle("a", "b", "c"), "1"),
    "two circles": (circle("a", "b") | circle("c", "d"), "2"),
    "by names": ({"a": "from mlxk2.room import b", "b": "from mlxk2.room.a import f"}, "1"),
    "for types only": (circle("a", "b") | {"a": "if TYPE_CHECKING:\n    import mlxk2.room.b"}, "1"),
    "in a function": (circle("a", "b") | {"a": "def g():\n    import mlxk2.room.b"}, "1"),
    "a row": (circle("a", "b", "c") | {"a": "import os"}, "0"),
    "a package and its module": ({"__init__": "import mlxk2.room.a", "a": "from mlxk2.room import b", "b": ""}, "0"),
}


@pytest.mark.parametrize("name", CIRCLES)
def test_circles_of_imports_are_counted(project: Project, name: str) -> None:
    modules, expected = CIRCLES[name]
    for module, text in modules.items():
        project.write(text, function(2), module=module)
    assert project.figure("circles of files") == expected


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("def _f(): pass\n_f()", "1"),
        ("class C:\n    def _f(self): pass\n    def g(self): self._f()", "1"),
        ("def _f(): pass\n_f()\n_f()", "0"),
        ("def _f(): pass", "0"),
        ("def f(): pass\nf()", "0"),
        ("class C:\n    def __enter__(self): pass\nC().__enter__()", "0"),
    ],
)
def test_a_private_function_with_one_caller_is_counted(project: Project, part: str, expected: str) -> None:
    lines = part.count("\n") + 1
    project.write(part, *["pass"] * (1000 - lines - 2), function(2).partition("\n")[2])
    assert project.figure("private functions with one caller") == f"{expected}.0"
