"""Record which files and types of mlxk2/ take part in one streamed chat request, step by step.

    python tools/request_path.py

This starts the server with the demo model in this process, sends it three equal requests, and records the functions
that are called for the last one, in all threads (`sys.setprofile`). A step is a file, in the order in which the files
are entered first. A type takes part when one of its methods is called. A file that calls another file hands the request
on (`>`); the others only serve the file that calls them. What the server does at other times is left out: its clock,
and giving memory back afterwards. docs/architecture.md lists the files by step, and a test compares.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import mlxk2.__main__

PACKAGE = str(Path(mlxk2.__main__.__file__).resolve().parent) + os.sep
QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "stream": True}
# Files whose functions run at their own times.
BESIDE = {"server/lifecycle.py", "runner/mlx/device.py", "cli/outlet.py"}


@dataclass
class Step:
    """One file: the functions that were called, and the files that they called."""

    functions: list[str] = field(default_factory=list)
    types: set[str] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)


class Recorder:
    """Records the calls of this package's functions while `is_on`."""

    def __init__(self) -> None:
        self.is_on = False
        self.steps: dict[str, Step] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Take an event of the interpreter."""
        if not self.is_on or event != "call" or (name := _file_of(frame)) is None:
            return
        step = self.steps.setdefault(name, Step())
        code = frame.f_code
        if code.co_qualname not in step.functions:
            step.functions.append(code.co_qualname)
        if code.co_varnames[:1] == ("self",):
            step.types.add(type(frame.f_locals["self"]).__name__)
        caller = frame.f_back
        while caller is not None and _file_of(caller) is None:
            caller = caller.f_back
        other = _file_of(caller) if caller is not None else None
        if other in self.steps and other != name:
            self.steps[other].calls.add(name)


def _file_of(frame: FrameType) -> str | None:
    name = frame.f_code.co_filename
    relative = name.removeprefix(PACKAGE)
    return None if relative == name or relative in BESIDE else relative


def ask(port: int) -> None:
    """Send the request, and read the stream to its end."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(QUESTION).encode())
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.read().endswith(b"data: [DONE]\n\n")


def observe(recorder: Recorder, port: int, out: TextIO) -> None:
    """Ask three times, record the last time, write the steps to `out`, and end the server."""
    while True:
        try:
            ask(port)
            break
        except OSError:
            time.sleep(0.1)
    ask(port)
    recorder.is_on = True
    ask(port)
    # The slots are given back after the response.
    time.sleep(0.2)
    recorder.is_on = False
    handing_on = [name for name, step in recorder.steps.items() if step.calls]
    for name, step in recorder.steps.items():
        mark = ">" if step.calls else " "
        print(f"{mark} {name}: {', '.join(sorted(step.types)) or '-'}\n      {' '.join(step.functions)}", file=out)
    types = {kind for step in recorder.steps.values() for kind in step.types}
    print(
        f"{len(recorder.steps)} files, of which {len(handing_on)} hand the request on; {len(types)} types",
        file=out,
        flush=True,
    )
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Serve and observe."""
    recorder = Recorder()
    # The server lets what libraries print go to stderr.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    threading.Thread(target=observe, args=[recorder, port, out]).start()
    threading.setprofile(recorder)
    sys.setprofile(recorder)
    sys.argv = ["mlxk2", "serve", "--model", "demo", "--port", str(port)]
    return mlxk2.__main__.main()


if __name__ == "__main__":
    sys.exit(main())
