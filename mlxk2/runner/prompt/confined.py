"""Processes that run what a model's own files define, within limits, and that can be ended at any moment."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Mapping
from typing import Any

from mlxk2.errors import ModelError, ModelNotRunnableError, OperationCancelled, ServerStoppingError
from mlxk2.runner.offline import VARIABLES

# Seconds of processor time for one rendering. The longest conversations that fit a context take a tenth of it.
TEMPLATE_SECONDS = 2.0
# Seconds of processor time, by the kind of question. Some tokenizers are converted when they are loaded: most of a
# minute on a slow machine. A prompt of a million tokens takes two seconds. A line of a completion, which is decoded
# while the completions of others wait, takes less than a millisecond.
SECONDS = {"open": 120.0, "chat": 10.0, "encode": 10.0, "decode": 1.0, "find": 1.0}
# Seconds of wall time: a process that was stopped, or that waits for a disk, uses no processor time.
_PATIENCE = {"open": 180.0, "chat": 20.0, "encode": 20.0, "decode": 5.0, "find": 5.0}
# Bytes; on Linux beyond what the process has mapped once its libraries are imported.
MAX_MEMORY = 3 << 30

_PROGRAM = "mlxk2.runner.prompt.process"
# Processes for one model.
_MAX_PROCESSES = 3
# Seconds after which another process is started beside one that is busy.
_BUSY_SECONDS = 1.0
# Seconds between two checks of whether the result is still needed, and of the memory.
_TICK = 0.1
# Bytes that are read or written at once.
_BLOCK_SIZE = 1 << 20
# Of `struct rusage_info_v0` of macOS, in numbers of 64 bits; the first two are a UUID.
_RUSAGE_FIELDS = 12
_FOOTPRINT = 9
# Libraries stay silent, and use one thread.
_SETTINGS = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}

# A JSON object and token ids.
Result = tuple[dict[str, Any], "array[int]"]
Cancelled = Callable[[], bool]


def never_cancelled() -> bool:
    """Return False, for work that nothing cancels."""
    return False


class ConfinedProcess:
    """A process of `process.py`: it is ready after a second, and takes one question after the other.

    If the kernel does not limit its memory, or with `watches_memory`, it is watched from outside, and ended when it
    uses more than `max_memory` bytes.
    """

    def __init__(self, *, watches_memory: bool = False, max_memory: int = MAX_MEMORY) -> None:
        self._max_memory = max_memory
        settings = {**os.environ, **VARIABLES, **_SETTINGS}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",  # the user's working folder may be gone
            env={name: value for name, value in settings.items() if value is not None},
            start_new_session=True,  # Ctrl-C is not meant for it
        )
        self._watches_memory = watches_memory or not _limits_memory(self._process.pid)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._write, self._read = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._write, False)
        os.set_blocking(self._read, False)
        self.close = weakref.finalize(self, _end, self._process)

    def kill(self) -> None:
        """End the process now, from any thread; a question under way gets an error."""
        self._process.kill()

    @property
    def is_alive(self) -> bool:
        """Whether it can take a question; a process that was stopped can't."""
        return self.close.alive and self._process.poll() is None and not self._is_stopped

    @property
    def _is_stopped(self) -> bool:
        # Python has waitid on macOS since 3.13; without it a stopped process is found when the patience ends.
        if not hasattr(os, "waitid"):
            return False
        return os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None

    def ask(
        self, question: Mapping[str, Any], patience: float | None = None, cancelled: Cancelled = never_cancelled
    ) -> Result:
        """Return the result of a question; `patience` is how many seconds of wall time it may take.

        Any fault ends the process. Raise ModelError if it gives no result, OperationCancelled if the question was
        `cancelled`.
        """
        try:
            return self._exchange(question, patience or _PATIENCE[question["ask"]], cancelled)
        except BaseException:
            self.close()
            raise

    def _exchange(self, question: Mapping[str, Any], patience: float, cancelled: Cancelled) -> Result:
        deadline = time.monotonic() + patience
        # ASCII, because a conversation may hold half a surrogate pair.
        left, received = memoryview(json.dumps(question).encode() + b"\n"), bytearray()
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        poll.register(self._write, select.POLLOUT)
        while True:
            events = poll.poll(_TICK * 1000)
            for file, _ in events:
                if file == self._write:
                    with contextlib.suppress(BlockingIOError, BrokenPipeError):
                        left = left[os.write(self._write, left[:_BLOCK_SIZE]) :]
                    if not left:
                        poll.unregister(self._write)
                elif data := os.read(self._read, _BLOCK_SIZE):
                    received += data
                    if result := _parse(received):
                        return result
                else:
                    raise _death_error(self._process.wait(), question["ask"])
            if cancelled():
                raise OperationCancelled("Interrupted.")
            if time.monotonic() > deadline:
                raise _silence_error()
            if not events:
                self._check_health()

    def _check_health(self) -> None:
        if self._process.poll() is None and self._is_stopped:
            raise _silence_error()
        if self._watches_memory and _used_memory(self._process.pid) > self._max_memory:
            raise _memory_error(self._max_memory)


def _parse(received: bytearray) -> Result | None:
    """Return a result if it has been received completely."""
    end = received.find(b"\n")
    if end < 0:
        return None
    # Only the head is JSON; it is parsed again for each block of a large result, of which there are few.
    head = json.loads(received[:end])
    if len(received) < end + 1 + head["bytes"]:
        return None
    ids = array("I")
    ids.frombytes(received[end + 1 :])
    return head, ids


def _silence_error() -> ModelError:
    return ModelError("The process of the model's tokenizer does not answer, and was replaced. Try again.")


def _memory_error(limit: int) -> ModelError:
    return ModelNotRunnableError(
        f"The model's tokenizer needs more than {limit >> 20} MB of memory. "
        "Shorten the prompt, or choose another model."
    )


def _death_error(code: int, asked: str) -> ModelError:
    """Return the error for a process that ended with this code, by the limit that it exceeded."""
    limits = {
        -signal.SIGPROF: ("chat template", TEMPLATE_SECONDS),
        -signal.SIGVTALRM: ("tokenizer", SECONDS[asked]),
    }
    if code in limits:
        what, limit = limits[code]
        return ModelNotRunnableError(
            f"The model's {what} ran for more than {limit:g} seconds and was ended. "
            "Shorten the prompt, or choose another model."
        )
    if code == -signal.SIGABRT:
        return _memory_error(MAX_MEMORY)
    return ModelError(f"The process of the model's tokenizer was ended ({code}). Try again.")


def _limits_memory(pid: int) -> bool:
    """Whether the kernel limits the memory of a process that asks for it. macOS does not."""
    if not hasattr(resource, "prlimit"):
        return False
    try:
        resource.prlimit(pid, resource.RLIMIT_AS, resource.getrlimit(resource.RLIMIT_AS))
    except (OSError, ValueError):
        return False
    return True


def _used_memory(pid: int) -> int:
    """Return the bytes of memory that a process uses, with those that macOS has compressed; 0 if that is not known."""
    usage = getattr(ctypes.CDLL(None), "proc_pid_rusage", None)
    if usage is not None:
        fields = (ctypes.c_uint64 * _RUSAGE_FIELDS)()
        if usage(pid, 0, fields) == 0:
            return int(fields[_FOOTPRINT])
    try:
        listed = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
    except OSError:
        return 0
    return int(listed.stdout.strip() or 0) << 10


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with contextlib.suppress(BrokenPipeError), process:
        pass


class Starter:
    """Starts processes; with `keeps_spare` one more is always being started, so that the next one is ready at once."""

    def __init__(self, *, keeps_spare: bool = False) -> None:
        self._keeps_spare = keeps_spare
        self._lock = threading.Lock()
        self._spare: ConfinedProcess | None = None
        self._started: weakref.WeakSet[ConfinedProcess] = weakref.WeakSet()
        self._is_stopping = False

    def prepare(self) -> None:
        """Start a process that will be needed soon."""
        with self._lock:
            if self._spare is None:
                self._spare = self._start()

    def take(self) -> ConfinedProcess:
        """Return a process that has had no question yet."""
        with self._lock:
            spare, self._spare = self._spare, None
            if spare is not None and spare.is_alive:
                return spare
            if spare is not None:
                spare.close()
            return self._start()

    def stop(self) -> None:
        """End all processes that were started, and start no more: one that still imports would outlive this process."""
        with self._lock:
            self._is_stopping = True
            for process in self._started:
                process.kill()

    def _start(self) -> ConfinedProcess:
        if self._is_stopping:
            raise ServerStoppingError
        process = ConfinedProcess()
        self._started.add(process)
        return process

    def restock(self) -> None:
        """Start the next spare process, with `keeps_spare`."""
        if self._keeps_spare and not self._is_stopping:
            self.prepare()


class Pool:
    """The processes of one model: one, and for some time another if the first is busy for long.

    `opening` is the first question to each; `check` raises an error for a wrong result of it.
    """

    def __init__(
        self, starter: Starter, opening: Mapping[str, Any], check: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._starter = starter
        self._opening = opening
        self._check = check
        self._changed = threading.Condition()
        self._idle: list[ConfinedProcess] = []
        self._busy = 0

    def open(self, cancelled: Cancelled = never_cancelled) -> Mapping[str, Any]:
        """Start the first process; return its result of the opening question."""
        process, result = self._start(cancelled)
        self._idle.append(process)
        self._starter.restock()
        return result

    def close(self) -> None:
        """End the processes that are idle."""
        with self._changed:
            while self._idle:
                self._idle.pop().close()

    def ask(self, question: Mapping[str, Any], cancelled: Cancelled = never_cancelled) -> Result:
        """Return the result of one of the processes; raise what `ConfinedProcess.ask` raises."""
        began = time.monotonic()
        with self._changed:
            while not self._idle and self._busy:
                if cancelled():
                    raise OperationCancelled("Interrupted.")
                if time.monotonic() > began + _BUSY_SECONDS and self._busy < _MAX_PROCESSES:
                    break
                self._changed.wait(_TICK)
            self._busy += 1
            process = self._idle.pop() if self._idle else None
        try:
            if process is None or not process.is_alive:
                if process is not None:
                    process.close()
                process, _ = self._start(cancelled)
                self._starter.restock()
            return process.ask(question, cancelled=cancelled)
        finally:
            with self._changed:
                self._busy -= 1
                if process is not None and process.is_alive:
                    if self._idle:
                        process.close()
                    else:
                        self._idle.append(process)
                self._changed.notify()

    def _start(self, cancelled: Cancelled) -> tuple[ConfinedProcess, Mapping[str, Any]]:
        process = self._starter.take()
        result, _ = process.ask(self._opening, cancelled=cancelled)
        self._check(result)
        return process, result
