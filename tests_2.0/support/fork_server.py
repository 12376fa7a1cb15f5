"""The process behind `starting.py`: it imports the libraries of some commands once, and forks for each run of one.

A request on the socket is a JSON object and the three standard streams. The response is the id of a process that is by
then a child of the test's process. Usage: fork_server.py SOCKET {hub,mlx}

A process of `run` or `serve` starts the processes of its tokenizers in the same way.
"""

from __future__ import annotations

import gc
import io
import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from mlxk2.fence import fence
from mlxk2.runner.offline import VARIABLES, offline

sys.path.insert(0, str(Path(__file__).parents[1]))
from support import starting

_MODULES = {
    "hub": ("hub.pull", "hub.push", "workspace.folder"),
    "mlx": (
        "chat.assistant",
        "chat.repl",
        "runner.prompt.chat_template",
        "server.lifecycle",
        "server.reload",
        "server.http.access",
    ),
}
# These read the environment when they are imported, so that each process of `pull` or `push` imports them itself.
_READ_ENVIRONMENT = ("huggingface_hub", "mlxk2.hub")
_MAX_REQUEST = 1 << 20
_TOKENIZER = "mlxk2.runner.prompt.process"


def _import(kind: str) -> None:
    """Import what the commands of a kind import."""
    import_module("mlxk2.cli.render")
    if kind == "mlx":
        # The processes of tokenizers need transformers, which `offline` would replace.
        with fence(VARIABLES):
            import_module("transformers").PreTrainedTokenizerFast  # noqa: B018 - imported when it is asked for
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


class _Popen(starting.Popen[bytes]):
    """Forks for the processes of tokenizers; a class of its own for each process that starts them."""

    server: starting.ForkServer

    @classmethod
    def _find_server(cls, command: list[str], _environment: Mapping[str, str]) -> starting.ForkServer | None:
        return cls.server if command[:-1] == [sys.executable, "-P", "-m"] and command[-1] == _TOKENIZER else None


def _fork_for_tokenizers() -> bool:
    """Let this process start the processes of its tokenizers as forks; return True in these."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        ours.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        os.close(nothing)
        _serve(its)
        return True
    its.close()
    _Popen.server = starting.ForkServer(ours)
    setattr(subprocess, "Popen", _Popen)  # noqa: B010 - mypy allows no assignment to a class
    return False


def _run(kind: str, requests: socket.socket) -> None:
    """Fork for each request; run the program in each fork."""
    _import(kind)
    sys.argv[1:] = _serve(requests)
    module = _TOKENIZER if kind == "mlx" and _fork_for_tokenizers() else "mlxk2"
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run(sys.argv[2], socket.socket(fileno=int(sys.argv[1])))
