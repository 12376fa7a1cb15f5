"""Shorten the import of transformers: Python imports this file at its start when its folder is on the path.

At each import, transformers reads 1,700 files twice to find what its models export, which takes half a second. The
result depends on nothing but its version, so the first process stores it and the others load it.

Then a file of the same name further on the path is run, which a test may have put there.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any

_MODULE = "transformers.utils.import_utils"


class _Finder:
    """Finds the module that reads the files, and replaces its function once the module is loaded."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, _target: object = None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_replace(module: ModuleType) -> None:
                execute(module)
                module.define_import_structure = _stored(module.define_import_structure)  # type: ignore[attr-defined]

            spec.loader.exec_module = execute_and_replace  # type: ignore[method-assign]
        return spec


def _stored(define: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its results for the folder of all models stored in files."""

    def load_or_define(module_path: str | os.PathLike[str], prefix: str | None = None) -> Any:
        if os.path.basename(os.fspath(module_path).removesuffix("/__init__.py")) != "models":
            return define(module_path, prefix)
        import pickle  # noqa: PLC0415 - most processes do not import transformers

        version = sys.modules["transformers"].__version__
        file = os.path.join(os.path.dirname(__file__), "__pycache__", f"transformers-{version}-{prefix}.pickle")
        with contextlib.suppress(OSError), open(file, "rb") as stored:
            return pickle.load(stored)
        structure = define(module_path, prefix)
        unfinished = f"{file}.{os.getpid()}"
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(file), exist_ok=True)
            with open(unfinished, "wb") as storing:
                pickle.dump(structure, storing)
            os.replace(unfinished, file)
        return structure

    return load_or_define


def _run_next() -> None:
    """Run the next file of this name on the path, which this one hides."""
    spec = PathFinder.find_spec("sitecustomize", sys.path[sys.path.index(os.path.dirname(__file__)) + 1 :])
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


sys.meta_path.insert(0, _Finder)
_run_next()
