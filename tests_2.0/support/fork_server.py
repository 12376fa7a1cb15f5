"""The process behind `starting.py`: it imports the libraries of some commands once, and forks for each run of one.

A request on the socket is a JSON object and the three standard streams. The response is the id of a process that is by
then a child of the test's process. Usage: fork_server.py SOCKET {hub,mlx}
"""

from __future__ import annotations

import gc
import io
import json
import os
import runpy
import socket
import sys
from importlib import import_module
from typing import Any

from mlxk2.runner.offline import offline

_MODULES = {
    "hub": ("hub.pull", "hub.push", "workspace.folder"),
    "mlx": ("chat.assistant", "chat.repl", "server.lifecycle", "server.reload", "server.http.access"),
}
# These read the environment when they are imported, so that each process of `pull` or `push` imports them itself.
_READ_ENVIRONMENT = ("huggingface_hub", "mlxk2.hub")
_MAX_REQUEST = 1 << 20


def _import(kind: str) -> None:
    """Import what the commands of a kind import."""
    import_module("mlxk2.cli.render")
    if kind == "mlx":
        with offline():
            for module in _MODULES[kind]:
                import_module(f"mlxk2.{module}")
        return
    for module in _MODULES[kind]:
        import_module(f"mlxk2.{module}")
    for name in list(sys.modules):
        if name.startswith(_READ_ENVIRONMENT):
            del sys.modules[name]
    # Otherwise the garbage collector of each fork copies the memory of all these modules.
    gc.collect()
    gc.freeze()


def _serve(requests: socket.socket) -> list[str]:
    """Fork for each request; return its command line in the forked process, and end this one after the last."""
    while True:
        data, streams, _, _ = socket.recv_fds(requests, _MAX_REQUEST, 3)
        if not data:
            os._exit(0)
        reading, writing = os.pipe()
        between = os.fork()
        if not between:
            process = os.fork()
            if process:
                os.write(writing, str(process).encode())
                # A process without a parent goes to the test's, which asked for it.
                os._exit(0)
            requests.close()
            os.close(reading)
            os.close(writing)
            return _become(json.loads(data), streams)
        os.waitpid(between, 0)
        requests.send(os.read(reading, 64))
        for descriptor in (reading, writing, *streams):
            os.close(descriptor)


def _become(request: dict[str, Any], streams: list[int]) -> list[str]:
    """Give this process the streams, the folder and the environment of a new one; return its command line."""
    if request["session"]:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if request["folder"] is not None:
        os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for name in ("stdin", "stdout", "stderr"):
        reopened = _reopened(getattr(sys, name))
        setattr(sys, name, reopened)
        setattr(sys, f"__{name}__", reopened)
    words: list[str] = request["words"]
    return words


def _reopened(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """Return a new stream for the descriptor of a standard stream, as the interpreter makes it at its start."""
    number = stream.fileno()
    mode = "rb" if number == 0 else "wb"
    buffer = open(number, mode, closefd=False)  # noqa: SIM115 - open as long as the process
    is_terminal = number == 2 or os.isatty(number)
    return io.TextIOWrapper(buffer, stream.encoding, stream.errors, newline="\n", line_buffering=is_terminal)


if __name__ == "__main__":
    _import(sys.argv[2])
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        sys.argv[1:] = _serve(listener)
    runpy.run_module("mlxk2", run_name="__main__", alter_sys=True)
