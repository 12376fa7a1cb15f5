"""How much of a hub's answers is read, and how long they are waited for; the limits and who keeps count.

`docs/decisions/0004-limits-of-reading.md` gives the reasons for the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import httpx2

from mlxk2.formatting import human_size

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits for one connection to the hub.

    An answer is one response of HTTP, a question all answers that a listing or the like takes. Times are in seconds.
    """

    answer_bytes: int = 32_000_000
    error_bytes: int = 64_000
    answer_seconds: float = 300
    silence_seconds: float = 30
    silence_after_upload_seconds: float = 600
    slow_seconds: float = 10
    slow_bytes: int = 1_000
    slow_file_seconds: float = 60
    slow_file_bytes: int = 4_000
    question_answers: int = 1000
    question_bytes: int = 100_000_000
    question_seconds: float = 1800
    pause_seconds: int = 300
    files: int = 100_000

    @classmethod
    def patient(cls, answer: float, file: float) -> Limits:
        """Return the limits for a user who asks to wait longer for an answer, or for a file, than they would."""
        usual = cls()
        return cls(
            silence_seconds=max(usual.silence_seconds, answer),
            slow_seconds=max(usual.slow_seconds, answer),
            slow_file_seconds=max(usual.slow_file_seconds, file),
        )


class LimitExceeded(httpx2.TransportError):
    """An answer is larger, slower or longer than the limits allow; the message is the end of a sentence about it.

    The library repeats requests after a lost connection. After this error it does not.
    """


class NonsenseError(ValueError):
    """The hub's answer has values that no hub would give; the message is a sentence about them."""


class Question:
    """The sum of the answers to one question."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._end = time.monotonic() + limits.question_seconds
        self._answers = 0
        self._bytes = 0

    def ask(self) -> None:
        """Count a request; LimitExceeded when the answers do not end."""
        self._answers += 1
        if self._answers > self._limits.question_answers:
            raise LimitExceeded(f"does not end: it comes in more than {self._limits.question_answers:,} parts")
        if time.monotonic() > self._end:
            raise LimitExceeded(f"does not end: its parts took more than {self._limits.question_seconds:g} seconds")

    def count(self, size: int) -> None:
        """Count the bytes of an answer; LimitExceeded when they are too many together."""
        self._bytes += size
        if self._bytes > self._limits.question_bytes:
            raise LimitExceeded(f"is larger than {human_size(self._limits.question_bytes)} in all its parts")


_QUESTION: ContextVar[Question | None] = ContextVar("question", default=None)
_FILE: ContextVar[int | None] = ContextVar("file", default=None)


@contextmanager
def set_inside(variable: ContextVar[Value], value: Value) -> Iterator[None]:
    """Give a variable of this thread a value inside the block."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def question(limits: Limits) -> AbstractContextManager[None]:
    """Count all answers inside the block together."""
    return set_inside(_QUESTION, Question(limits))


def receiving_file(size: int) -> AbstractContextManager[None]:
    """Take the answers inside the block for the bytes of a file of this size: they may take as long as they need."""
    return set_inside(_FILE, size)


def current_question() -> Question | None:
    """Return the question that is being asked in this thread."""
    return _QUESTION.get()


def current_file() -> int | None:
    """Return the size of the file that is being received in this thread."""
    return _FILE.get()


class Watch:
    """Counts what the network brings of one answer, and the time spent waiting for it.

    Only time inside reads counts, so that a slow disk is never blamed on the hub.
    """

    def __init__(self, limits: Limits, file_size: int | None, deadline: float) -> None:
        is_file = file_size is not None
        self._slow_seconds = limits.slow_file_seconds if is_file else limits.slow_seconds
        self._slow_bytes = limits.slow_file_bytes if is_file else limits.slow_bytes
        # A compressed file may be a little larger than the plain one, and there are headers.
        self._most = limits.answer_bytes if file_size is None else file_size + file_size // 8 + (1 << 20)
        self._silence = limits.silence_seconds
        self._silence_after_upload = limits.silence_after_upload_seconds
        self._deadline = None if is_file else deadline
        self._limits = limits
        self._has_begun = False
        self._waited = 0.0
        self._came = 0
        self._total = 0

    def allow_upload(self) -> None:
        """Wait longer for the first byte: the hub works on what was sent to it."""
        self._silence = self._silence_after_upload

    def patience(self, timeout: float | None) -> float:
        """Return how long one read may wait, in seconds; `timeout` is what the library asks for."""
        left = (self._slow_seconds if self._has_begun else self._silence) - self._waited
        if self._deadline is not None:
            left = min(left, self._deadline - time.monotonic())
        if timeout is not None:
            left = min(left, timeout)
        return max(left, 0.001)  # zero would mean not to wait at all

    def sent(self) -> None:
        """Note that a part of the request has gone out: the wait for an answer begins now."""
        self._waited = 0.0

    def count(self, size: int, waited: float) -> None:
        """Count one read; LimitExceeded when it was one too many."""
        self._total += size
        self._came += size
        self._waited += waited
        if self._total > self._most:
            raise LimitExceeded(f"is larger than {human_size(self._most)}")
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise LimitExceeded(f"took longer than {self._limits.answer_seconds:g} seconds")
        if not self._has_begun:
            self._begin(size)
        elif self._came >= self._slow_bytes:
            self._waited, self._came = 0.0, 0
        elif self._waited >= self._slow_seconds:
            amount = f"less than {human_size(self._slow_bytes)} in {self._slow_seconds:g} seconds"
            raise LimitExceeded(f"came too slowly: {amount}")

    def _begin(self, size: int) -> None:
        if size:
            self._has_begun, self._waited, self._came = True, 0.0, 0
        elif self._waited >= self._silence:
            raise LimitExceeded(f"did not begin within {self._silence:g} seconds")
