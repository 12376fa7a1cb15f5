"""A server whose output is not read continues to serve, and ends in time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from support.serving import END, START, cache_dir_of, environment_of, full_pipe
from support.wire import CHAT, Wire, post

from mlxk2.cli.outlet import MAX_WAITING_BYTES, Outlet

pytestmark = pytest.mark.e2e

QUESTION = b'{"messages":[{"role":"user","content":"What is 3 + 4?"}],"temperature":0}'


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


WAYS = {
    "stderr": ("stderr",),
    "stderr, with requests logged": ("stderr", "--verbose"),
    "stderr, started again by changes": ("stderr", "--reload", "--verbose"),
    "stdout": ("stdout", "--json"),
    "both": ("both", "--verbose"),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_unread_output_does_not_stop_the_server(tmp_path: Path, way: tuple[str, ...]) -> None:
    which, *words = way
    cache_dir_of(tmp_path)
    port = free_port()
    command = [sys.executable, "-m", "mlxk2", "serve", "--model", "demo", "--port", str(port), *words]
    with full_pipe() as (_, full):
        out, err = (full if which in (name, "both") else subprocess.DEVNULL for name in ("stdout", "stderr"))
        process = subprocess.Popen(command, env=environment_of(tmp_path), cwd=tmp_path, stdout=out, stderr=err)
        try:
            wait_until_ready(port)
            for _ in range(20):
                with Wire(port) as wire:
                    assert wire.send(b"garbage\r\n\r\n").response().status == 400
            with Wire(port) as wire:
                assert wire.send(post(CHAT, QUESTION, port=port)).response().status == 200
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert process.wait(END) == 0
            assert time.monotonic() - began < 5
        finally:
            process.kill()
            process.wait(END)


def wait_until_ready(port: int) -> None:
    """Wait until the model is loaded."""
    deadline = time.monotonic() + START
    while True:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=START).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_unread_log_lines_are_dropped_and_counted() -> None:
    with full_pipe() as (reading, writing), os.fdopen(os.dup(writing), "w") as stream:
        outlet = Outlet(stream)
        line = "y" * 1023 + "\n"
        kept = MAX_WAITING_BYTES // len(line)
        began = time.monotonic()
        outlet.write("first\n")
        outlet.drain(0.1)  # so that the thread has taken the line and blocks
        for _ in range(kept + 7):
            outlet.write(line)
        outlet.drain(0.1)
        assert time.monotonic() - began < 5
        said = b""
        while b"dropped" not in said:
            said += os.read(reading, 1 << 16)
        said = said.lstrip(b"x")
        assert said.startswith(b"first\n") and said.count(b"y\n") == kept
        assert said.endswith(b"WARNING: 7 lines were dropped here, because no program read them.\n")
        outlet.write("last\n")
        outlet.drain(10)
        assert os.read(reading, 100) == b"last\n"
