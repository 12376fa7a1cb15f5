"""Start the program faster: as a fork of a process that has imported its libraries already.

`Popen` and `run` are those of `subprocess`, and so is the process that they start: a child with its own environment,
working folder and streams that reads its command line, ends as the program ends, and can be killed. What starts
otherwise, or on another system than Linux, is started by `subprocess`.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, AnyStr

_FORK_SERVER = Path(__file__).with_name("fork_server.py")
_KINDS = {"pull": "hub", "push": "hub", "run": "mlx", "serve": "mlx"}
_PROGRAM = [sys.executable, "-m", "mlxk2"]
_PR_SET_CHILD_SUBREAPER = 36


def python_path(folder: Path) -> str:
    """Return a `PYTHONPATH` on which a folder of a test comes after the one of all tests."""
    return os.pathsep.join([os.environ["PYTHONPATH"], str(folder)])


class ForkServer:
    """A process that has imported the libraries of some commands."""

    def __init__(self, kind: str, locale: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "PATH", "HF_XET"))}
        with its:
            self.process = subprocess.Popen(
                [sys.executable, _FORK_SERVER, str(its.fileno()), kind],
                env=kept | dict(locale) | {"HF_HOME": os.devnull},
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                start_new_session=True,
            )
        atexit.register(self._close)

    def _close(self) -> None:
        self._socket.close()
        self.process.wait()

    def start(self, request: Mapping[str, Any], streams: Sequence[int]) -> int:
        """Start a process and return its id; it is then a child of this process."""
        with self._lock, _Adopting():
            socket.send_fds(self._socket, [json.dumps(request).encode()], streams)
            return int(self._socket.recv(64))


class _Adopting:
    """Adopt the descendants of this process whose parents end inside this block."""

    def __enter__(self) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def __exit__(self, *_: object) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@functools.cache
def _fork_server(kind: str, *locale: tuple[str, str]) -> ForkServer:
    """Return the process for a kind of commands in a locale, which decides how the standard streams encode text."""
    return ForkServer(kind, dict(locale))


class Popen(subprocess.Popen[AnyStr]):
    """A process: a fork for commands of the program with slow imports, otherwise one of `subprocess`."""

    def _execute_child(self, *options: Any) -> None:
        names = subprocess.Popen._execute_child.__code__.co_varnames[1:]  # type: ignore[attr-defined]
        given = dict(zip(names, options, strict=False))
        environment = dict(os.environ if given["env"] is None else given["env"])
        kind = _kind_of(given, environment)
        if kind is None:
            super()._execute_child(*options)  # type: ignore[misc]
            return
        locale = {name: value for name, value in environment.items() if name == "LANG" or name.startswith("LC_")}
        request = {
            "words": given["args"][len(_PROGRAM) :],
            "environment": environment,
            "folder": None if given["cwd"] is None else os.fspath(given["cwd"]),
            "session": given["start_new_session"],
        }
        ours = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
        streams = [number if stream == -1 else stream for number, stream in enumerate(ours)]
        self.pid = _fork_server(kind, *sorted(locale.items())).start(request, streams)
        self._child_created = True
        handles = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[name] for name in handles))  # type: ignore[attr-defined]


def _kind_of(given: Mapping[str, Any], environment: Mapping[str, str]) -> str | None:
    """Return the kind of a command, or None if it can't be forked."""
    words = given["args"]
    if not isinstance(words, list) or words[: len(_PROGRAM)] != _PROGRAM or not sys.platform.startswith("linux"):
        return None
    is_plain = given["preexec_fn"] is None and not given["pass_fds"] and not given["shell"]
    variables = {name for name in {*environment, *os.environ} if name.startswith("PYTHON")}
    is_same_python = all(environment.get(name) == os.environ.get(name) for name in variables)
    kind = _KINDS.get(words[len(_PROGRAM)]) if words[len(_PROGRAM) :] else None
    return kind if is_plain and is_same_python else None


def run(
    command: Sequence[str | Path],
    *,
    input: Any = None,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Start a command, wait for its end, and return what `subprocess.run` returns."""
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(command, **options) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done
