"""Start, freeze, stop and restart the server under load, and measure the resources of its process.

A life is the time from a start of the server to its end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
from channels import KEY, MAX_SECONDS
from judge import RESTART, Judge
from models import DEMO, WALK
from questions import CHAT, FACTS, HEALTH, MODELS, chat
from support.serving import Server, full_pipe
from world import World

Sample = tuple[float, int]
MIN_LIFE_SECONDS = 120.0  # The memory of a shorter life is not judged.
# In this part of a life memory may grow, because some combinations of requests have not occurred yet.
_WARM_UP = 1 / 2
MAX_GROWTH = 1.05  # The peak of memory at the end, divided by the peak of the warm-up.


class Held(NamedTuple):
    """The number of open files and threads of a process."""

    files: int
    threads: int


def memory_of(pid: int) -> int | None:
    """Return the resident bytes of a process; None if it has ended."""
    output = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return int(output) * 1024 if output.strip() else None


def held_by(pid: int) -> Held | None:
    """Return the open files and threads of a process; None on systems without /proc."""
    folder = Path("/proc") / str(pid)
    if not folder.is_dir():
        return None
    return Held(*(sum(1 for _ in (folder / name).iterdir()) for name in ("fd", "task")))


def memory_peaks(samples: Sequence[Sample]) -> tuple[int, int] | None:
    """Return the peaks of memory in a life's warm-up and in its last quarter; None if the life was too short.

    Only peaks are compared, because memory varies by a tenth and more when models are loaded and unloaded.
    """
    if not samples or samples[-1][0] - samples[0][0] < MIN_LIFE_SECONDS:
        return None
    sizes = [size for _, size in samples]
    return max(sizes[: int(len(sizes) * _WARM_UP)]), max(sizes[-(len(sizes) // 4) :])


MAX_STOP_SECONDS = 5.0  # The documented limit.
_ARGUMENTS = ("--model", "demo", "--prompt-cache-bytes", "4MB", "--max-concurrent", "8", "--max-queue", "64")
# Enough concurrent requests and rounds to make the server create all threads that read the disk.
_READERS, _ROUNDS = 32, 3
_MAX_BUSY_SECONDS = 20.0  # Until the server must have noticed that clients are gone.


class Life:
    """One server after another at the same address; `open` is set while clients may send requests."""

    def __init__(self, world: World, judge: Judge) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.port = 0
        self.ends: list[float] = []
        self.samples: list[Sample] = []
        self.at_start: Held | None = None
        self._world = world
        self._judge = judge
        self._lives = 0
        self._alone = asyncio.Lock()
        self._held = ExitStack()
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """Return the address of the server in all its lives."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start the server and wait until it is ready."""
        environment = {**self._world.environment, "MLXK2_API_KEY": KEY}
        self._lives += 1
        # In every third life, the log goes into a full pipe that no program reads.
        stderr = self._held.enter_context(full_pipe())[1] if self._lives % 3 == 2 else None
        server = Server(
            *_ARGUMENTS, "--port", str(self.port), home=self._world.home, environment=environment, stderr=stderr
        )
        # Push before entering, so that the server is ended even if this is cancelled before it is ready.
        self._held.push(server)
        self._server = await asyncio.to_thread(server.__enter__)
        self.port = server.port
        self.samples = []

    async def restart(self, *, last: bool) -> None:
        """Stop the server under load and start it again; measure the `last` one before clients may send requests."""
        async with self._alone:
            with self._judge.timeline.out_of_order(RESTART):
                self._judge.record_fault("the server is stopped and started again")
                await self.stop()
                if last:
                    self.open.clear()
                await self.start()
            if last:
                self.at_start = await self.settle()
                self.open.set()

    async def stop(self) -> None:
        """Stop the server with SIGTERM and check its exit code, its log and the time."""
        assert self._server is not None
        begun = time.monotonic()
        try:
            code = await asyncio.to_thread(self._server.stop)
        except subprocess.TimeoutExpired:
            self._judge.complain("SIGTERM does not stop the server")
            code = 0
        self.ends.append(time.monotonic() - begun)
        log = self._server.err
        self._held.close()
        if code != 0 or self.ends[-1] > MAX_STOP_SECONDS:
            self._judge.complain(f"after SIGTERM the server ended with {code} in {self.ends[-1]:.1f} s")
        before, traceback, after = log.partition("Traceback")
        if traceback:
            self._judge.complain(f"the server's log has a traceback:\n{before[-500:]}{traceback}{after[:4000]}")

    def kill(self) -> None:
        """Kill the server at once."""
        self._held.close()

    async def settle(self) -> Held | None:
        """Send an idle server one request of each kind; return its files and threads when it is idle again.

        Report requests that are still active although all clients are idle.
        """
        async with httpx.AsyncClient(
            base_url=self.url, timeout=MAX_SECONDS, trust_env=False, headers={"Authorization": f"Bearer {KEY}"}
        ) as client:
            for model in (WALK, DEMO):
                await client.post(CHAT, json=chat(*list(FACTS)[:1], model=model, max_tokens=8))
            for _ in range(_ROUNDS):
                await asyncio.gather(*(client.get(MODELS) for _ in range(_READERS)))
            await self._wait_until_idle(client)
        # The server needs a moment to see that the connections are gone.
        await asyncio.sleep(1)
        return held_by(self.pid)

    async def _wait_until_idle(self, client: httpx.AsyncClient) -> None:
        deadline = time.monotonic() + _MAX_BUSY_SECONDS
        while (state := (await client.get(HEALTH)).json())["active"] or state["queued"]:
            if time.monotonic() > deadline:
                self._judge.complain(f"all clients are idle, but /health says {state}")
                return
            await asyncio.sleep(0.1)

    def measure(self) -> None:
        """Record the server's memory."""
        size = memory_of(self.pid)
        if size is not None:
            self.samples.append((self._judge.timeline.now, size))

    async def freeze(self, seconds: float) -> None:
        """Stop the server's process for some seconds, as closing a laptop's lid does."""
        async with self._alone:
            self._judge.record_fault(f"the server is frozen: for {seconds:.1f} s")
            os.kill(self.pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(seconds)
            finally:
                os.kill(self.pid, signal.SIGCONT)

    @property
    def pid(self) -> int:
        """Return the id of the server's process."""
        assert self._server is not None
        return self._server.process.pid
