"""Helpers for tests of processes: their memory, and which of a group are alive."""

from __future__ import annotations

import os
import subprocess

import pytest

needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc, which is not there")


def resident_bytes(pid: int) -> int:
    """Return the resident bytes of a process."""
    output = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(output.stdout) << 10


def living_processes(leader: int) -> dict[int, str]:
    """Return the command lines of the living processes of a process group, by their ids; its leader may have ended."""
    command = ["ps", "-A", "-ww", "-o", "pid=,pgid=,stat=,args="]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    fields = [line.split(maxsplit=3) for line in output.splitlines()]
    return {
        int(pid): "".join(args) for pid, of, state, *args in fields if int(of) == leader and not state.startswith("Z")
    }
