"""The server's lives: start, freeze, SIGTERM under load, restart; and the resources of its process."""

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
from channels import KEY, PATIENCE
from judge import RESTART, Judge
from models import DEMO, WALK
from questions import CHAT, FACTS, HEALTH, MODELS, chat
from support.serving import Server, full_pipe
from world import World

Sample = tuple[float, int]
# Seconds that a life must last for its memory to be judged; and the part of it in which memory may grow, because not
# all kinds of load have met each other.
SHORTEST = 120.0
_WARM_UP = 1 / 2
# Peak of memory at the end, divided by that of the warm-up.
MAX_GROWTH = 1.05


class Held(NamedTuple):
    """The number of open files and threads of a process."""

    files: int
    threads: int


def memory_of(pid: int) -> int | None:
    """Return the resident bytes of a process; None if it has ended."""
    said = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return int(said) * 1024 if said.strip() else None


def held_by(pid: int) -> Held | None:
    """Return the open files and threads of a process; None on systems without /proc."""
    folder = Path("/proc") / str(pid)
    if not folder.is_dir():
        return None
    return Held(*(sum(1 for _ in (folder / name).iterdir()) for name in ("fd", "task")))


def settled(samples: Sequence[Sample]) -> tuple[int, int] | None:
    """Return the peak of memory in a life's warm-up and in its last quarter; None if the life was too short.

    Between its peaks the memory varies by a tenth and more, as models come and go.
    """
    if not samples or samples[-1][0] - samples[0][0] < SHORTEST:
        return None
    sizes = [size for _, size in samples]
    return max(sizes[: int(len(sizes) * _WARM_UP)]), max(sizes[-(len(sizes) // 4) :])


# Seconds that the end of the server may take, as documented.
LONGEST_END = 5.0
_ARGUMENTS = ("--model", "demo", "--prompt-cache-bytes", "4MB", "--max-concurrent", "8", "--max-queue", "64")
# Enough requests at once, and rounds of them, to create all threads that read the disk.
_LOOKERS, _ROUNDS = 32, 3
# Seconds until the server must have noticed that clients are gone.
_MAX_IDLE_SECONDS = 20.0


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
        # In every third life the log goes into a pipe that is full and not read.
        stderr = self._held.enter_context(full_pipe())[1] if self._lives % 3 == 2 else None
        server = Server(
            *_ARGUMENTS, "--port", str(self.port), home=self._world.home, environment=environment, stderr=stderr
        )
        # Also if this is cancelled before it is ready.
        self._held.push(server)
        self._server = await asyncio.to_thread(server.__enter__)
        self.port = server.port
        self.samples = []

    async def restart(self, *, last: bool) -> None:
        """End the server under load and start the next; the `last` one is measured before clients may send requests."""
        async with self._alone:
            with self._judge.timeline.out_of_order(RESTART):
                self._judge.done("the server is ended and started again")
                await self.stop()
                if last:
                    self.open.clear()
                await self.start()
            if last:
                self.at_start = await self.settle()
                self.open.set()

    async def stop(self) -> None:
        """End the server with SIGTERM and check how it ends."""
        assert self._server is not None
        begun = time.monotonic()
        try:
            code = await asyncio.to_thread(self._server.stop)
        except subprocess.TimeoutExpired:
            self._judge.complain("SIGTERM does not end the server")
            code = 0
        self.ends.append(time.monotonic() - begun)
        log = self._server.err
        self._held.close()
        if code != 0 or self.ends[-1] > LONGEST_END:
            self._judge.complain(f"after SIGTERM the server ended with {code} in {self.ends[-1]:.1f} s")
        before, traceback, after = log.partition("Traceback")
        if traceback:
            self._judge.complain(f"the server's log has a traceback:\n{before[-500:]}{traceback}{after[:4000]}")

    def kill(self) -> None:
        """Kill the server at once."""
        self._held.close()

    async def settle(self) -> Held | None:
        """Let an idle server do a little of everything; return what it holds when it is idle again.

        Report requests that are still under way although all clients are idle.
        """
        async with httpx.AsyncClient(
            base_url=self.url, timeout=PATIENCE, trust_env=False, headers={"Authorization": f"Bearer {KEY}"}
        ) as client:
            for model in (WALK, DEMO):
                await client.post(CHAT, json=chat(*list(FACTS)[:1], model=model, max_tokens=8))
            for _ in range(_ROUNDS):
                await asyncio.gather(*(client.get(MODELS) for _ in range(_LOOKERS)))
            await self._wait_until_idle(client)
        # The server needs a moment to see that the connections are gone.
        await asyncio.sleep(1)
        return held_by(self.pid)

    async def _wait_until_idle(self, client: httpx.AsyncClient) -> None:
        deadline = time.monotonic() + _MAX_IDLE_SECONDS
        while (state := (await client.get(HEALTH)).json())["active"] or state["queued"]:
            if time.monotonic() > deadline:
                self._judge.complain(f"all clients are idle, but /health says {state}")
                return
            await asyncio.sleep(0.1)

    def measure(self) -> None:
        """Note the server's memory."""
        size = memory_of(self.pid)
        if size is not None:
            self.samples.append((self._judge.timeline.now, size))

    async def freeze(self, seconds: float) -> None:
        """Stop the server's process for seconds, as closing a laptop's lid does."""
        async with self._alone:
            self._judge.done(f"the server is frozen: for {seconds:.1f} s")
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
