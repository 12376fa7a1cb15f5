"""The limits of size and time for a hub's responses, and the counters that enforce them.

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

    A response is an HTTP response. A call is a call of the library, such as a listing, which can need many responses.
    """

    response_bytes: int = 32_000_000
    error_bytes: int = 64_000
    response_seconds: float = 300
    silence_seconds: float = 30
    silence_after_upload_seconds: float = 600
    slow_seconds: float = 10
    slow_bytes: int = 1_000
    slow_file_seconds: float = 60
    slow_file_bytes: int = 4_000
    call_requests: int = 1000
    call_bytes: int = 100_000_000
    call_seconds: float = 1800
    pause_seconds: int = 300
    files: int = 100_000

    @classmethod
    def patient(cls, response_seconds: float, file_seconds: float) -> Limits:
        """Return limits that wait at least as long as the user's time-outs for a response and for a file."""
        default = cls()
        return cls(
            silence_seconds=max(default.silence_seconds, response_seconds),
            slow_seconds=max(default.slow_seconds, response_seconds),
            slow_file_seconds=max(default.slow_file_seconds, file_seconds),
        )


class LimitExceeded(httpx2.TransportError):
    """A response is larger, slower or longer than the limits allow; the message is the end of a sentence about it.

    The library repeats a request after other transport errors, but not after this one.
    """


class InvalidResponseError(ValueError):
    """The response has values that a hub never sends; the message is a sentence about them."""


class Call:
    """Counts the requests, the bytes and the time of one call of the library."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._end = time.monotonic() + limits.call_seconds
        self._requests = 0
        self._bytes = 0

    def count_request(self) -> None:
        """Count a request; raise LimitExceeded if there are too many or they take too long."""
        self._requests += 1
        if self._requests > self._limits.call_requests:
            raise LimitExceeded(f"does not end: it comes in more than {self._limits.call_requests:,} parts")
        if time.monotonic() > self._end:
            raise LimitExceeded(f"does not end: its parts took more than {self._limits.call_seconds:g} seconds")

    def count_bytes(self, size: int) -> None:
        """Count the bytes of a response; raise LimitExceeded if all responses together have too many."""
        self._bytes += size
        if self._bytes > self._limits.call_bytes:
            raise LimitExceeded(f"is larger than {human_size(self._limits.call_bytes)} in total")


_CALL: ContextVar[Call | None] = ContextVar("call", default=None)
_FILE_BYTES: ContextVar[int | None] = ContextVar("file_bytes", default=None)


@contextmanager
def set_inside(variable: ContextVar[Value], value: Value) -> Iterator[None]:
    """Set a variable of this thread inside the block."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def count_call(limits: Limits) -> AbstractContextManager[None]:
    """Count all requests inside the block as one call."""
    return set_inside(_CALL, Call(limits))


def receive_file(size: int) -> AbstractContextManager[None]:
    """Treat the responses inside the block as a file of `size` bytes, which has no limit on its total time."""
    return set_inside(_FILE_BYTES, size)


def current_call() -> Call | None:
    """Return the call that this thread is making, or None."""
    return _CALL.get()


def current_file_bytes() -> int | None:
    """Return the size of the file that this thread is receiving, or None."""
    return _FILE_BYTES.get()


class Watch:
    """Counts the bytes of one response, and the time spent waiting for them.

    Only the time inside reads counts, so that a slow disk does not look like a slow hub.
    """

    def __init__(self, limits: Limits, file_bytes: int | None, deadline: float) -> None:
        is_file = file_bytes is not None
        self._slow_seconds = limits.slow_file_seconds if is_file else limits.slow_seconds
        self._slow_bytes = limits.slow_file_bytes if is_file else limits.slow_bytes
        # A compressed file can be a little larger than the original, and the headers count too.
        self._max_bytes = limits.response_bytes if file_bytes is None else file_bytes + file_bytes // 8 + (1 << 20)
        self._silence_seconds = limits.silence_seconds
        self._deadline = None if is_file else deadline
        self._limits = limits
        self._has_begun = False
        self._waited_seconds = 0.0
        self._recent_bytes = 0
        self._total_bytes = 0

    def allow_upload(self) -> None:
        """Wait longer for the first byte, because the hub processes the upload before it responds."""
        self._silence_seconds = self._limits.silence_after_upload_seconds

    def seconds_left(self, timeout: float | None) -> float:
        """Return how long one read may wait, in seconds; `timeout` is the library's own limit."""
        left = (self._slow_seconds if self._has_begun else self._silence_seconds) - self._waited_seconds
        if self._deadline is not None:
            left = min(left, self._deadline - time.monotonic())
        if timeout is not None:
            left = min(left, timeout)
        return max(left, 0.001)  # Zero would mean a read that never waits.

    def restart_wait(self) -> None:
        """Restart the wait for a response, after a part of the request was sent."""
        self._waited_seconds = 0.0

    def count(self, size: int, seconds: float) -> None:
        """Count one read of `size` bytes that took `seconds`; raise LimitExceeded if a limit is exceeded."""
        self._total_bytes += size
        self._recent_bytes += size
        self._waited_seconds += seconds
        if self._total_bytes > self._max_bytes:
            raise LimitExceeded(f"is larger than {human_size(self._max_bytes)}")
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise LimitExceeded(f"took longer than {self._limits.response_seconds:g} seconds")
        if not self._has_begun:
            if size:
                self._has_begun, self._waited_seconds, self._recent_bytes = True, 0.0, 0
            elif self._waited_seconds >= self._silence_seconds:
                raise LimitExceeded(f"did not begin within {self._silence_seconds:g} seconds")
        elif self._recent_bytes >= self._slow_bytes:
            self._waited_seconds, self._recent_bytes = 0.0, 0
        elif self._waited_seconds >= self._slow_seconds:
            amount = f"less than {human_size(self._slow_bytes)} in {self._slow_seconds:g} seconds"
            raise LimitExceeded(f"came too slowly: {amount}")
