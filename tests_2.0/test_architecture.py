"""The structure of the package, read from its imports: they point downward, and only one room imports each library."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mlxk2

PACKAGE = Path(mlxk2.__file__).parent
FOUNDATION = {"errors", "formatting", "names", "fence", "sleep"}

# The other rooms that each room may import, lowest first; every room may import itself.
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "formatting": {"errors"},
    "names": {"errors", "formatting"},
    "fence": set(),
    "sleep": set(),
    "checkpoint": FOUNDATION,
    "cache": FOUNDATION | {"checkpoint"},
    "workspace": FOUNDATION | {"checkpoint", "cache"},
    "hub": FOUNDATION | {"checkpoint", "cache", "workspace"},
    "runner": FOUNDATION | {"checkpoint"},
    "chat": FOUNDATION | {"runner"},
    "server": FOUNDATION | {"checkpoint", "cache", "runner"},
    "spec": {"checkpoint"},
    "commands": FOUNDATION | {"checkpoint", "cache", "workspace", "hub", "runner", "chat", "server", "spec"},
    "cli": FOUNDATION | {"spec", "commands"},
    "__main__": {"cli"},
    "__init__": set(),
    "demo": set(),
}

# The only rooms that may import these packages.
ROOMS_OF = {
    "mlx": {"runner"},
    "mlx_lm": {"runner"},
    "transformers": {"runner"},
    "huggingface_hub": {"hub"},
    "hf_xet": {"hub"},
    "fastapi": {"server"},
    "starlette": {"server"},
    "uvicorn": {"server"},
    "pydantic": {"server"},
    "prompt_toolkit": {"chat"},
    "rich": {"cli", "chat"},
    "yaml": {"checkpoint", "workspace"},
    "shtab": {"commands"},
}

TALKERS = {"print", "input", "exit", "quit", "breakpoint"}
STREAMS = {("sys", "stdout"), ("sys", "stderr"), ("sys", "stdin"), ("sys", "exit"), ("os", "_exit")}
MAY_TALK = {
    "mlxk2.cli.main",
    "mlxk2.__main__",
    # Inside a fence, other threads print as before.
    "mlxk2.fence",
}


def modules() -> Iterator[tuple[str, str]]:
    """Yield the name and the source of every module of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        # An `__init__` belongs to the room of its folder; that of the root is a room by itself.
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)
        yield name, path.read_text(encoding="utf-8")


def imported_names(tree: ast.Module) -> Iterator[str]:
    """Yield the full names that a module imports anywhere in its source, also by `import_module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            # In `from mlxk2 import cache`, only the alias names the room.
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "mlxk2")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            yield _constant_prefix(node.args[0])


def _constant_prefix(argument: ast.expr) -> str:
    """Return the constant beginning of a string, which for a computed module name contains the room."""
    first = argument.values[0] if isinstance(argument, ast.JoinedStr) else argument
    return str(first.value).rstrip(".") if isinstance(first, ast.Constant) else ""


def room_of(name: str) -> str:
    """Return the room of a module: `mlxk2.cache.store` → `cache`."""
    return name.split(".")[1]


def faults(name: str, source: str) -> list[str]:
    """Return the violations of the architecture in a module."""
    tree = ast.parse(source)
    found = [fault for target in imported_names(tree) if (fault := _fault_of_import(room_of(name), target))]
    return found if name in MAY_TALK else found + list(_talk(tree))


def _fault_of_import(room: str, target: str) -> str | None:
    if target.startswith("."):
        return f"relative import {target}"
    top, _, rest = target.partition(".")
    if top != "mlxk2":
        return None if room in ROOMS_OF.get(top, {room}) else f"{room} imports {top}"
    wanted = rest.split(".")[0]
    if wanted not in BELOW or wanted == room or wanted in BELOW[room]:
        return None  # itself, a room below, or a name of the package's root such as __version__
    return f"{room} imports {wanted}"


def _talk(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TALKERS:
            yield f"calls {node.func.id}"
        if isinstance(node, ast.Attribute) and tuple(ast.unparse(node).split(".")) in STREAMS:
            yield f"uses {ast.unparse(node)}"
        if isinstance(node, ast.Raise) and "SystemExit" in ast.unparse(node):
            yield "raises SystemExit"


@pytest.mark.parametrize(("name", "source"), [pytest.param(*module, id=module[0]) for module in modules()])
def test_each_module_follows_the_architecture(name: str, source: str) -> None:
    assert room_of(name) in BELOW, f"{room_of(name)} is not in the table of rooms"
    assert not faults(name, source)


def circle(sources: Mapping[str, str]) -> list[str]:
    """Return the modules of one circle of imports, or none; imports for types count, too."""
    imports = {
        name: {target for target in _modules_named(ast.parse(source)) if target in sources and target != name}
        for name, source in sources.items()
    }
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def _modules_named(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_package_has_no_circular_imports() -> None:
    assert not circle(dict(modules()))


def test_the_check_finds_a_circle() -> None:
    sources = {
        "mlxk2.cache.a": "def f():\n    from mlxk2.cache import b",
        "mlxk2.cache.b": "if TYPE_CHECKING:\n    from mlxk2.cache.c import x",
        "mlxk2.cache.c": "import mlxk2.cache.a",
        "mlxk2.cache.d": "from mlxk2.cache.a import y",
    }
    assert set(circle(sources)) == {"mlxk2.cache.a", "mlxk2.cache.b", "mlxk2.cache.c"}


def test_only_commands_are_imported_by_a_computed_name() -> None:
    named = [name for name, source in modules() if re.search(r"import_module\(f?[\"']mlxk2", source)]
    assert named == ["mlxk2.cli.main"]


def test_the_table_of_rooms_has_no_upward_import() -> None:
    for room, below in BELOW.items():
        assert not [lower for lower in below if room in BELOW[lower]]


def test_the_rooms_of_the_architecture_exist() -> None:
    there = {room_of(name) for name, _ in modules()}
    assert {"cli", "commands", "checkpoint", "cache", "runner", "errors", "spec"} <= there


WRONG = [
    ("mlxk2.cache.x", "from mlxk2.commands import list", "cache imports commands"),
    ("mlxk2.cache.x", "import mlxk2.runner.runner", "cache imports runner"),
    ("mlxk2.cache.x", "from mlxk2 import cli", "cache imports cli"),
    ("mlxk2.cache.x", "def f():\n    from mlxk2.hub import download", "cache imports hub"),
    ("mlxk2.cache.x", "from importlib import import_module\nimport_module('mlxk2.cli.render')", "cache imports cli"),
    ("mlxk2.cache.x", "import importlib\nimportlib.import_module(f'mlxk2.commands.{x}')", "cache imports commands"),
    ("mlxk2.cache.x", "from ..commands import list", "relative import ..commands"),
    ("mlxk2.cache.x", "import huggingface_hub.utils", "cache imports huggingface_hub"),
    ("mlxk2.commands.x", "from huggingface_hub import HfApi", "commands imports huggingface_hub"),
    ("mlxk2.commands.x", "import mlx.core as mx", "commands imports mlx"),
    ("mlxk2.server.x", "from mlx_lm import load", "server imports mlx_lm"),
    ("mlxk2.runner.x", "import fastapi", "runner imports fastapi"),
    ("mlxk2.runner.x", "from mlxk2.server import app", "runner imports server"),
    ("mlxk2.errors", "from mlxk2.spec import Error", "errors imports spec"),
    ("mlxk2.cli.render", "print('x')", "calls print"),
    ("mlxk2.commands.x", "import sys\nsys.exit(1)", "uses sys.exit"),
    ("mlxk2.commands.x", "import sys\nsys.stdout.write('x')", "uses sys.stdout"),
    ("mlxk2.commands.x", "raise SystemExit(1)", "raises SystemExit"),
]


@pytest.mark.parametrize(("name", "source", "fault"), WRONG)
def test_the_check_finds_a_wrong_module(name: str, source: str, fault: str) -> None:
    assert fault in faults(name, source)


def test_no_test_patches_the_package() -> None:
    tests = Path(__file__).parent
    patches = ("patch(" + '"mlxk2', "patch(" + "'mlxk2", "setattr(" + '"mlxk2', "setattr(" + "mlxk2")
    guilty = [str(path) for path in tests.rglob("*.py") if any(word in path.read_text() for word in patches)]
    assert not guilty


@pytest.mark.e2e
def test_the_documents_list_the_files_of_a_chat_request() -> None:
    root = PACKAGE.parent
    tool = [sys.executable, str(root / "tools" / "request_path.py")]
    output = subprocess.run(tool, check=True, capture_output=True, text=True).stdout
    recorded = re.findall(r"^[> ] (\S+)\.py:", output, re.M)
    page = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+)[.`]", page.partition("## The life of a chat request")[2])
    assert len(recorded) > 20
    assert [file for file in recorded if not any(f"/{file}".endswith(f"/{name}") for name in named)] == []
