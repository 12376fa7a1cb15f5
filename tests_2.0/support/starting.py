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
# What `subprocess` decides before it starts a process, by name.
_OPTIONS = subprocess.Popen._execute_child.__code__.co_varnames[1:]  # type: ignore[attr-defined]
_PR_SET_CHILD_SUBREAPER = 36


def python_path(folder: Path) -> str:
    """Return a `PYTHONPATH` on which a folder of a test comes after the one of all tests."""
    return os.pathsep.join([os.environ["PYTHONPATH"], str(folder)])


class ForkServer:
    """A process that has imported the libraries of some commands, by the socket on which it takes requests."""

    def __init__(self, requests: socket.socket) -> None:
        self._lock = threading.Lock()
        self._requests = requests

    def start(self, request: Mapping[str, Any], streams: Sequence[int]) -> int:
        """Start a process and return its id; it is then a child of this process."""
        with self._lock, _Adopting():
            socket.send_fds(self._requests, [json.dumps(request).encode()], streams)
            return int(self._requests.recv(64))


class _Adopting:
    """Adopt the descendants of this process whose parents end inside this block."""

    def __enter__(self) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def __exit__(self, *_: object) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@functools.cache
def _fork_server(kind: str, *locale: tuple[str, str]) -> ForkServer:
    """Return the process for a kind of commands in a locale, which decides how the standard streams encode text."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "PATH", "HF_XET"))}
    with its:
        process = subprocess.Popen(
            [sys.executable, _FORK_SERVER, str(its.fileno()), kind],
            env=kept | dict(locale) | {"HF_HOME": os.devnull, "TRANSFORMERS_VERBOSITY": "error"},
            stdin=subprocess.DEVNULL,
            pass_fds=[its.fileno()],
            start_new_session=True,
        )
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ForkServer(ours)


class Popen(subprocess.Popen[AnyStr]):
    """A process: a fork for commands of the program with slow imports, otherwise one of `subprocess`."""

    def _execute_child(self, *options: Any) -> None:
        given = dict(zip(_OPTIONS, options, strict=False))
        environment = dict(os.environ if given["env"] is None else given["env"])
        is_plain = isinstance(given["args"], list) and given["preexec_fn"] is None and not given["pass_fds"]
        server = self._find_server(given["args"], environment) if is_plain and not given["shell"] else None
        if server is None:
            super()._execute_child(*options)  # type: ignore[misc]
            return
        request = {
            "words": given["args"][given["args"].index("-m") + 2 :],
            "environment": environment,
            "folder": None if given["cwd"] is None else os.fspath(given["cwd"]),
            "session": given["start_new_session"],
        }
        ours = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
        self.pid = server.start(request, [number if stream == -1 else stream for number, stream in enumerate(ours)])
        self._child_created = True
        handles = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[name] for name in handles))  # type: ignore[attr-defined]

    @staticmethod
    def _find_server(command: list[str], environment: Mapping[str, str]) -> ForkServer | None:
        """Return the process that can fork for a command, or None."""
        if command[: len(_PROGRAM)] != _PROGRAM or not sys.platform.startswith("linux"):
            return None
        variables = {name for name in {*environment, *os.environ} if name.startswith("PYTHON")}
        kind = _KINDS.get("".join(command[len(_PROGRAM) :][:1]))
        if kind is None or any(environment.get(name) != os.environ.get(name) for name in variables):
            return None
        locale = {name: value for name, value in environment.items() if name == "LANG" or name.startswith("LC_")}
        return _fork_server(kind, *sorted(locale.items()))


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
