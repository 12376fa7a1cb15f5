"""The load: clients send a seeded mix of requests, during all faults, until the time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

import questions
from channels import Channels, be_rude
from judge import Judge
from librarian import Librarian
from life import Life
from outcomes import Completion
from questions import Question

CLIENTS = 10
RUDE_CLIENTS = 2
# In this part of the time, the server is restarted several times; in the rest, it is not restarted.
_RESTARTS_UNTIL = 0.55
# At the beginning of the last life, each question is asked so many times at once; all requests fit into the queue.
_AT_ONCE = 4
_SECONDS_BETWEEN_SAMPLES = 0.5
_SECONDS_BETWEEN_FAULTS = 4.0


class Load:
    """Runs all clients and faults; `over` is set when they must end."""

    def __init__(self, seed: int, seconds: float, judge: Judge, life: Life, librarian: Librarian) -> None:
        self.over = asyncio.Event()
        self._seed = seed
        self._seconds = seconds
        self._judge = judge
        self._life = life
        self._librarian = librarian
        self._known: list[Question] = []

    async def learn(self) -> None:
        """Ask every repeatable question once, while the server is idle, and remember the completions."""
        channels = Channels(self._life.url)
        for question in questions.repeatable(self._rng("questions")):
            completion = await channels.ask_over_http(question)
            if not isinstance(completion, Completion):
                raise RuntimeError(f"{question} failed on an idle server: {completion}")
            self._known.append(questions.expect(question, completion))
        await channels.close()

    async def run(self) -> None:
        """Put the server under load and faults for the whole time; return when all clients have finished."""
        tasks = [
            *(self._ask(self._rng(f"client {number}")) for number in range(CLIENTS)),
            *(self._vanish(self._rng(f"rude {number}")) for number in range(RUDE_CLIENTS)),
            self._change_models(),
            self._read_cache(),
            self._freeze(),
            self._restart(),
            self._measure(),
        ]
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task)
            await asyncio.sleep(self._seconds)
            self.over.set()

    def _rng(self, who: str) -> Random:
        return Random(f"{self._seed} {who}")

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.over.wait(), seconds)

    async def _ask(self, rng: Random) -> None:
        channels = Channels(self._life.url)
        while not self.over.is_set():
            await self._life.open.wait()
            question, ask = channels.choose(self._choose(rng), rng)
            since = self._judge.timeline.now
            outcome = await ask(question)
            self._judge.counts[f"asked: {ask.__name__.removeprefix('ask_')}"] += 1
            self._judge.judge(question, outcome, since)
            if not isinstance(outcome, Completion):
                await self._pause(0.2)
        await channels.close()

    def _choose(self, rng: Random) -> Question:
        kinds: dict[Callable[[Random], Question], int] = {
            lambda rng: rng.choice(self._known): 10,
            questions.ask_fact: 4,
            questions.ask_walk: 4,
            questions.ask_stopped_walk: 2,
            questions.ask_tale: 4,
            questions.ask_long_prompt: 1,
            questions.ask_invalid: 4,
            questions.ask_unloadable: 1,
            questions.ask_hostile: 1,
            questions.ask_state: 3,
        }
        (make,) = rng.choices(list(kinds), list(kinds.values()))
        return make(rng)

    async def _vanish(self, rng: Random) -> None:
        while not self.over.is_set():
            await self._life.open.wait()
            done = await be_rude(self._life.url, rng.choice(self._known).as_stream, rng)
            if done is not None:
                self._judge.faults[done] += 1
            await self._pause(rng.random())

    async def _change_models(self) -> None:
        rng = self._rng("keep")
        while True:
            for task in self._librarian.tasks:
                if self.over.is_set():
                    return
                await task()
                await self._pause(rng.uniform(0.5, 1) * _SECONDS_BETWEEN_FAULTS)

    async def _read_cache(self) -> None:
        rng = self._rng("look")
        while not self.over.is_set():
            await self._librarian.read_cache()
            await self._pause(rng.uniform(0.5, 1) * _SECONDS_BETWEEN_FAULTS)

    async def _freeze(self) -> None:
        await self._now_and_then(self._rng("freeze"), lambda rng: self._life.freeze(rng.uniform(0.5, 3)))

    async def _now_and_then(self, rng: Random, do: Callable[[Random], Awaitable[None]]) -> None:
        while not self.over.is_set():
            await self._pause(rng.uniform(1, 3) * _SECONDS_BETWEEN_FAULTS)
            if not self.over.is_set():
                await do(rng)

    async def _restart(self) -> None:
        rng = self._rng("restart")
        until = self._judge.timeline.now + self._seconds * _RESTARTS_UNTIL
        while (pause := rng.uniform(3, 8) * _SECONDS_BETWEEN_FAULTS) < until - self._judge.timeline.now:
            await asyncio.sleep(pause)
            await self._life.restart(last=False)
        await asyncio.sleep(max(0.0, until - self._judge.timeline.now))
        await self._life.restart(last=True)
        await self._ask_all_at_once()

    async def _ask_all_at_once(self) -> None:
        """Ask all known questions several times at once, so that memory reaches its peak early in the last life."""
        channels = Channels(self._life.url)

        async def ask(question: Question) -> None:
            since = self._judge.timeline.now
            self._judge.judge(question, await channels.ask_over_http(question), since)

        await asyncio.gather(*(ask(question) for question in self._known * _AT_ONCE))
        await channels.close()

    async def _measure(self) -> None:
        while not self.over.is_set():
            if self._life.open.is_set():
                self._life.measure()
            await self._pause(_SECONDS_BETWEEN_SAMPLES)
