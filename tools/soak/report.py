"""What a soak found, in some lines that can be quoted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from audit import Findings
from gauges import SHORTEST, Held
from judge import Judge
from life import Life

_KINDS = ("asked", "right", "refused", "busy", "restart", "damaged", "command")


def report(judge: Judge, life: Life, findings: Findings | None, *, seed: int, seconds: float) -> Iterator[str]:
    """Yield the lines; the last one is the verdict."""
    yield f"Soak of {seconds:.0f} s with seed {seed}, {judge.timeline.now:.0f} s in all"
    for kind in _KINDS:
        found = {name.partition(": ")[2]: count for name, count in judge.counts.items() if name.startswith(f"{kind}:")}
        yield f"  {kind} {sum(found.values()):,}: {_listed(Counter(found))}"
    yield f"  faults {judge.faults.total():,}: {_listed(judge.faults)}"
    for kind, times in sorted(judge.latencies.items()):
        yield f"  {kind} took {_percentile(times, 50):.2f} s (p50), {_percentile(times, 99):.2f} s (p99)"
    yield f"  ends of the server: {', '.join(f'{end:.1f}' for end in life.ends)} s after SIGTERM"
    if findings is not None:
        yield f"  most memory of the last life: {_memory(findings.memory)}"
        yield f"  at its start: {_held(findings.at_start)}; at its end: {_held(findings.at_end)}"
        yield f"  left behind: {', '.join(findings.left) or 'nothing'}"
    yield f"{'FAILED' if judge.unexpected else 'PASSED'}: {len(judge.unexpected)} unexpected"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common()) or "none"


def _percentile(times: Sequence[float], percent: int) -> float:
    return sorted(times)[(len(times) - 1) * percent // 100]


def _memory(memory: tuple[int, int] | None) -> str:
    if memory is None:
        return f"not judged, the life was shorter than {SHORTEST:g} s"
    first, last = memory
    return f"{first / 1e6:.1f} MB in its first half, {last / 1e6:.1f} MB in its last quarter (× {last / first:.3f})"


def _held(held: Held | None) -> str:
    return "unknown" if held is None else f"{held.files} open files, {held.threads} threads"
