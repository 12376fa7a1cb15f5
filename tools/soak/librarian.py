"""Change the cache while the server runs: remove, damage and update models, kill pulls, fill the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

from judge import Judge
from models import BULK, DEMO, EDITIONS, HOSTILE, TALE, WALK
from programs import Programs, kill
from questions import FACTS
from support.hub import Fault
from world import World

_ALWAYS = float("inf")
_MIB = 1 << 20
_WEIGHTS = "model.safetensors"
_ABSENT = ("model_not_found",)
_RATE = 4 * _MIB  # Bytes per second of a pull that will be killed.
_MAX_BEGIN_SECONDS = 60.0  # Until a pull must have fetched something.


class Librarian:
    """Damages TALE and BULK, and pulls them again until they are complete."""

    def __init__(self, world: World, judge: Judge, programs: Programs, rng: Random) -> None:
        self._world = world
        self._judge = judge
        self._programs = programs
        self._rng = rng
        self._edition = 0

    @property
    def tasks(self) -> list[Callable[[], Awaitable[None]]]:
        """Return all changes in a random order."""
        tasks: list[Callable[[], Awaitable[None]]] = [
            self._remove_and_pull,
            self._damage_and_repair,
            self._renew,
            self._pull_twice_at_once,
            self._kill_a_pull,
            self._kill_a_removal,
            self._cut_a_pull,
            self._fill_the_disk,
        ]
        self._rng.shuffle(tasks)
        return tasks

    async def fill(self) -> None:
        """Pull all models, at the beginning and at the end."""
        for name in (WALK, TALE, BULK, HOSTILE):
            await self._programs.run("pull", name)

    async def read_cache(self) -> None:
        """Run a command that reads the cache while others change it; it must find the models that never change."""
        fact, text = self._rng.choice(list(FACTS.items()))
        greedy = ("--temperature", "0", "--repetition-penalty", "1")
        word, *rest = self._rng.choice(
            [("list",), ("health",), ("show", WALK, "--files"), ("health", WALK), ("run", DEMO, fact, *greedy)]
        )
        data = await self._programs.run(word, *rest)
        if data is None:
            return
        if word == "run" and data["response"] != text:
            self._judge.complain(f"`run` writes {data['response']!r} for {fact!r}")
        names = [entry["name"] for entry in data.get("models", ()) or data.get("healthy", ())]
        if word in ("list", "health") and WALK not in names:
            self._judge.complain(f"`{word}` does not list {WALK}: {data}")

    async def _remove_and_pull(self) -> None:
        with self._judge.timeline.out_of_order(TALE):
            self._judge.record_fault("a model is removed: the tale")
            await self._programs.run("rm", TALE, "--force")
            await self._pause(1)
            await self._programs.run("pull", TALE)

    async def _damage_and_repair(self) -> None:
        snapshot = self._snapshot(TALE)
        damage = self._rng.choice([_truncate, _empty, _garble_config, _unlink, _dangle])
        with self._judge.timeline.out_of_order(TALE):
            self._judge.record_fault(f"a model is damaged: {damage.__name__.strip('_')}")
            damage(snapshot)
            await self._pause(1)
            found = await self._programs.run("health", TALE)
            if found is not None and found["summary"]["unhealthy_count"] != 1:
                self._judge.complain(f"`health` finds nothing after {damage.__name__}: {found}")
            await self._programs.run("pull", TALE, *self._rng.choice([(), ("--force",)]))

    async def _renew(self) -> None:
        self._edition = (self._edition + 1) % len(EDITIONS)
        self._world.hub.add(TALE, self._world.tales[self._edition])
        with self._judge.timeline.out_of_order(TALE):
            self._judge.record_fault(f"a model is renewed: edition {self._edition}")
            await self._programs.run("pull", TALE)

    async def _pull_twice_at_once(self) -> None:
        with self._judge.timeline.out_of_order(TALE):
            self._judge.record_fault("two pulls of one model at once")
            await self._programs.run("rm", TALE, "--force")
            await asyncio.gather(*(self._programs.run("pull", TALE) for _ in range(2)))

    async def _kill_a_pull(self) -> None:
        with self._judge.timeline.out_of_order(BULK):
            await self._programs.run("rm", BULK, "--force")
            self._world.hub.faults.add(Fault("/objects/", times=_ALWAYS, rate=_RATE))
            for _ in range(self._rng.randrange(1, 3)):
                await self._kill_on_the_way()
            self._world.hub.faults.clear()
            await self._check_absent()
            await self._programs.run("pull", BULK)

    async def _kill_on_the_way(self) -> None:
        begun = self._world.hub.log.sent("/objects/")
        process = await self._programs.start("pull", BULK)
        until = begun + self._rng.randrange(_MIB // 2, 4 * _MIB)
        try:
            async with asyncio.timeout(_MAX_BEGIN_SECONDS):
                while process.returncode is None and self._world.hub.log.sent("/objects/") < until:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self._judge.complain("a pull fetches nothing")
        finally:
            kill(process)
        await process.communicate()
        self._judge.record_fault(f"a pull is killed: after {(self._world.hub.log.sent('/objects/') - begun) >> 10} KB")

    async def _check_absent(self) -> None:
        data = await self._programs.run("list")
        if data is not None and BULK in [entry["name"] for entry in data["models"]]:
            self._judge.complain(f"`list` shows {BULK}, whose pull was killed")

    async def _kill_a_removal(self) -> None:
        with self._judge.timeline.out_of_order(BULK):
            process = await self._programs.start("rm", BULK, "--force")
            try:
                await asyncio.sleep(self._rng.random() * 1.5)
            finally:
                kill(process)
            await process.communicate()
            self._judge.record_fault("a removal is killed")
            data = await self._programs.run("health", BULK)
            if data is not None and data["summary"]["unhealthy_count"]:
                self._judge.complain(f"a killed removal left half of a model: {data}")
            await self._programs.run("rm", BULK, "--force", may_fail=_ABSENT)
            await self._programs.run("pull", BULK)

    async def _cut_a_pull(self) -> None:
        with self._judge.timeline.out_of_order(BULK):
            await self._programs.run("rm", BULK, "--force")
            self._world.hub.faults.add(Fault(_WEIGHTS, cut_after=self._rng.randrange(1, 5 * _MIB)))
            self._judge.record_fault("the hub cuts a download")
            await self._programs.run("pull", BULK)
            self._world.hub.faults.clear()

    async def _fill_the_disk(self) -> None:
        with self._judge.timeline.out_of_order(BULK):
            await self._programs.run("rm", BULK, "--force")
            if self._world.is_small:
                self._judge.record_fault("the disk is full: the cache's file system")
                with self._world.full_disk():
                    await self._fail_to_pull(limited=False)
            else:
                self._judge.record_fault("the disk is full: a limit to the size of files")
                await self._fail_to_pull(limited=True)
            await self._programs.run("pull", BULK)

    async def _fail_to_pull(self, *, limited: bool) -> None:
        data = await self._programs.run("pull", BULK, may_fail=("OperationError",), limited=limited)
        if data is not None:
            self._judge.complain(f"`pull` succeeds on a full disk: {data}")
        await self._programs.run("list")

    def _snapshot(self, name: str) -> Path:
        folder = self._world.cache / f"models--{name.replace('/', '--')}"
        return folder / "snapshots" / (folder / "refs" / "main").read_text().strip()

    async def _pause(self, max_seconds: float) -> None:
        await asyncio.sleep(self._rng.random() * max_seconds)


def _truncate(snapshot: Path) -> None:
    path = (snapshot / _WEIGHTS).resolve()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _empty(snapshot: Path) -> None:
    (snapshot / _WEIGHTS).resolve().write_bytes(b"")


def _garble_config(snapshot: Path) -> None:
    (snapshot / "config.json").resolve().write_bytes(b'{"model_type": ')


def _unlink(snapshot: Path) -> None:
    (snapshot / "config.json").unlink()


def _dangle(snapshot: Path) -> None:
    (snapshot / _WEIGHTS).resolve().unlink()
