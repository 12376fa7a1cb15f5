"""Judge each outcome: it is right, an error that is expected at that time, or a fault of the server."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from outcomes import Completion, Lost, Odd, Outcome, Page, Refusal
from questions import Question

RESTART = "restart"  # The name of the times in which the server restarts.
_MISSING = {(404, "model_not_found"), (400, "model_unhealthy")}
# The codes of errors in a stream that began before its model was removed.
_MISSING_CODES = {code for _, code in _MISSING}
_MAX_SHOWN = 20

Span = tuple[float, float]


@dataclass
class Timeline:
    """The times at which a model or the server was out of order, in seconds since the start."""

    start: float = field(default_factory=time.monotonic)
    _spans: dict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))
    _open: dict[str, float] = field(default_factory=dict)

    @property
    def now(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.start

    @contextmanager
    def out_of_order(self, what: str) -> Iterator[None]:
        """Mark the time of the block as out of order; it can affect every request that overlaps with it."""
        assert what not in self._open
        self._open[what] = self.now
        yield
        # If the block raises, the thing stays out of order.
        self._spans[what].append((self._open.pop(what), self.now))

    def was_out_of_order(self, what: str, since: float) -> bool:
        """Return whether a thing was out of order at any time after `since`."""
        return what in self._open or any(end >= since for _, end in self._spans[what])


class Judge:
    """Counts all outcomes, and prints the unexpected ones."""

    def __init__(self, timeline: Timeline, seed: int) -> None:
        self.timeline = timeline
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.latencies: dict[str, list[float]] = defaultdict(list)
        self._seed = seed

    def judge(self, question: Question, outcome: Outcome, since: float) -> None:
        """Judge the outcome of a question that was asked at the time `since`."""
        kind, complaint = self._verdict(question, outcome, since)
        if complaint is not None:
            self.complain(f"{question.kind} {question.path} {str(question.body)[:500]}: {complaint}")
            return
        self.counts[kind] += 1
        if isinstance(outcome, Completion | Page):
            self.latencies[question.kind].append(self.timeline.now - since)

    def record_fault(self, fault: str) -> None:
        """Record a fault that the soak has caused, with its time."""
        self.faults[fault.partition(":")[0]] += 1
        print(f"[{self.timeline.now:6.1f}] {fault}", file=sys.stderr, flush=True)

    def complain(self, complaint: str) -> None:
        """Record and print something that should not have happened."""
        self.unexpected.append(complaint)
        if len(self.unexpected) <= _MAX_SHOWN:
            text = f"[{self.timeline.now:6.1f}] UNEXPECTED (seed {self._seed}): {complaint}"
            print(text, file=sys.stderr, flush=True)

    def _verdict(self, question: Question, outcome: Outcome, since: float) -> tuple[str, str | None]:
        if isinstance(outcome, Completion | Page):
            return f"right: {question.kind}", self._fault_of_response(question, outcome, since)
        if isinstance(outcome, Refusal):
            return self._judge_refusal(question, outcome, since)
        if isinstance(outcome, Odd):
            return "", outcome.detail
        return self._judge_loss(outcome, since)

    def _fault_of_response(self, question: Question, response: Completion | Page, since: float) -> str | None:
        is_restarting = self.timeline.was_out_of_order(RESTART, since)
        if isinstance(response, Page) and response.status == 503 and is_restarting:
            return None
        return question.check(response)

    def _judge_refusal(self, question: Question, refusal: Refusal, since: float) -> tuple[str, str | None]:
        what = (refusal.status, refusal.code)
        if what == question.refusal:
            return f"refused: {refusal.status} {refusal.code}", None
        if refusal.code == "shutting_down" and self.timeline.was_out_of_order(RESTART, since):
            return f"restart: {'stream ended with the mark' if refusal.in_stream else '503 shutting_down'}", None
        if what == (503, "server_busy") and refusal.retry_after:
            return "busy: 503 server_busy", None
        is_missing = what in _MISSING or (refusal.in_stream and refusal.code in _MISSING_CODES)
        if is_missing and self.timeline.was_out_of_order(question.model, since):
            return f"damaged: {refusal.status} {refusal.code}", None
        return "", f"{refusal}"

    def _judge_loss(self, lost: Lost, since: float) -> tuple[str, str | None]:
        is_clean = lost.how in ("refused", "closed", "slow") and self.timeline.was_out_of_order(RESTART, since)
        return f"restart: connection {lost.how}", None if is_clean else f"{lost}"
