"""The process behind `killing.py`: it imports the program once and forks for each run.

A line on stdin is `[words, before]`, a line on stdout `[exit code, stdout, stderr]`, both as JSON.
"""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import sys
import tempfile
from importlib import import_module
from itertools import count
from typing import IO, Any

from mlxk2.cli.main import main

_IMPORTED = ("mlxk2.cache", "mlxk2.checkpoint", "mlxk2.commands", "mlxk2.hub", "mlxk2.workspace")
_CHANGES = {f"os.{name}" for name in ("chmod", "link", "mkdir", "remove", "rename", "rmdir", "symlink", "truncate")}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def _serve() -> None:
    # Otherwise every fork imports these again.
    import_module("mlxk2.cli.render")
    for package in _IMPORTED:
        for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
            import_module(module.name)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_forked(*json.loads(line))) + "\n")
        sys.stdout.flush()


def _forked(words: list[str], before: int | None) -> tuple[int, str, str]:
    """Run the program in a fork; return its exit code (negative after a signal), stdout and stderr."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = os.fork()
        if not process:
            try:
                _run(words, before, out, err)
            finally:
                os._exit(os.EX_SOFTWARE)
        _, status = os.waitpid(process, 0)
        return os.waitstatus_to_exitcode(status), _text(out), _text(err)


def _run(words: list[str], before: int | None, out: IO[bytes], err: IO[bytes]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, handle in enumerate((nothing, out.fileno(), err.fileno())):
        os.dup2(handle, number)
    if before is not None:
        _kill_before(before)
    code = main(words)
    sys.stdout.flush()
    os._exit(code)


def _kill_before(number: int) -> None:
    """Kill this process when Python announces its n-th change to the disk."""
    changes = count()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        is_writing = event == "open" and isinstance(args[2], int) and args[2] & _WRITING
        if (is_writing or event in _CHANGES) and next(changes) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


if __name__ == "__main__":
    _serve()
