"""The final checks (no leaked files or threads, nothing left behind, a healthy cache), and the report."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from judge import Judge
from librarian import Librarian
from life import MAX_GROWTH, MIN_LIFE_SECONDS, Held, Life, memory_peaks
from models import BULK, HOSTILE, TALE, WALK
from programs import Programs
from world import World

# The allowed increase since the start. Threads are created when they are needed: at most 12 for prompts, 4 for the
# catalog, and those of asyncio.
_MAX_MORE = {"files": 0, "threads": 16 + min(32, (os.cpu_count() or 1) + 4)}
# Entries of an idle cache that are not models.
_ENTRIES = {".locks", "TEST_SENTINEL", "CACHEDIR.TAG"}
_UNFINISHED = (".incomplete", ".partial", ".tmp")


@dataclass(frozen=True)
class Findings:
    """The measurements at the end; `memory` holds the peaks of the last life's warm-up and of its end, in bytes."""

    memory: tuple[int, int] | None
    at_start: Held | None
    at_end: Held | None
    left: list[str]


async def audit(world: World, judge: Judge, life: Life, librarian: Librarian, programs: Programs) -> Findings:
    """Check everything, stop the server, and report every fault to the judge."""
    memory = memory_peaks(life.samples)
    at_end = await life.settle()
    _compare(judge, memory, life.at_start, at_end)
    await librarian.fill()
    await _check_cache(judge, programs)
    await life.stop()
    # Killed processes and their children end a moment later.
    await asyncio.sleep(1)
    left = [*_left_in(world), *(f"process {pid}" for pid in world.processes())]
    if left:
        judge.complain(f"left behind: {left}")
    return Findings(memory, life.at_start, at_end, left)


def _compare(judge: Judge, memory: tuple[int, int] | None, at_start: Held | None, at_end: Held | None) -> None:
    if memory is not None and memory[1] > MAX_GROWTH * memory[0]:
        judge.complain(f"the memory grows from {memory[0]:,} to {memory[1]:,} bytes in one life")
    if at_start is not None and at_end is not None:
        for what, before, after in zip(Held._fields, at_start, at_end, strict=True):
            if after > before + _MAX_MORE[what]:
                judge.complain(f"the server had {before} {what} at the start of its life, and has {after} at the end")


async def _check_cache(judge: Judge, programs: Programs) -> None:
    data = await programs.run("health", "--deep")
    healthy = [entry["name"] for entry in (data or {}).get("healthy", ())]
    if healthy != sorted((WALK, TALE, BULK, HOSTILE)) or (data and data["unhealthy"]):
        judge.complain(f"the cache is not healthy at the end: {data}")


def _left_in(world: World) -> Iterator[str]:
    yield from (str(path) for path in world.temporary.iterdir())
    for path in world.cache.iterdir():
        if not path.name.startswith("models--") and path.name not in _ENTRIES:
            yield str(path)
    yield from (str(path) for path in world.cache.rglob("*") if path.name.endswith(_UNFINISHED))


_KINDS = ("asked", "right", "refused", "busy", "restart", "damaged", "command")


def report(judge: Judge, life: Life, findings: Findings | None, *, seed: int, seconds: float) -> Iterator[str]:
    """Yield the lines of the report; the last one is the verdict."""
    yield f"Soak of {seconds:.0f} s with seed {seed}, {judge.timeline.now:.0f} s in all"
    for kind in _KINDS:
        found = {name.partition(": ")[2]: count for name, count in judge.counts.items() if name.startswith(f"{kind}:")}
        yield f"  {kind} {sum(found.values()):,}: {_list(Counter(found))}"
    yield f"  faults {judge.faults.total():,}: {_list(judge.faults)}"
    for kind, times in sorted(judge.latencies.items()):
        yield f"  {kind} took {_percentile(times, 50):.2f} s (p50), {_percentile(times, 99):.2f} s (p99)"
    yield f"  ends of the server: {', '.join(f'{end:.1f}' for end in life.ends)} s after SIGTERM"
    if findings is not None:
        yield f"  most memory of the last life: {_describe_memory(findings.memory)}"
        yield f"  at its start: {_describe_held(findings.at_start)}; at its end: {_describe_held(findings.at_end)}"
        yield f"  left behind: {', '.join(findings.left) or 'nothing'}"
    yield f"{'FAILED' if judge.unexpected else 'PASSED'}: {len(judge.unexpected)} unexpected"


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common()) or "none"


def _percentile(times: Sequence[float], percent: int) -> float:
    return sorted(times)[(len(times) - 1) * percent // 100]


def _describe_memory(memory: tuple[int, int] | None) -> str:
    if memory is None:
        return f"not judged, because the life was shorter than {MIN_LIFE_SECONDS:g} s"
    first, last = memory
    return f"{first / 1e6:.1f} MB in its first half, {last / 1e6:.1f} MB in its last quarter (× {last / first:.3f})"


def _describe_held(held: Held | None) -> str:
    return "unknown" if held is None else f"{held.files} open files, {held.threads} threads"
