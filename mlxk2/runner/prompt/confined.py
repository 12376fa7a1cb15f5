"""Run the untrusted programs in a model's files in processes with limits, which can be ended at any time."""

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

# Processor time for one rendering. The longest conversations that fit a context take a tenth of it.
MAX_TEMPLATE_SECONDS = 2.0
# Processor time, by the kind of question. Some tokenizers are converted when they are loaded, which takes most of a
# minute on a slow machine. A prompt of a million tokens takes two seconds. Decoding a line of a completion takes less
# than a millisecond; other completions wait for it.
MAX_CPU_SECONDS = {"open": 120.0, "chat": 10.0, "encode": 10.0, "decode": 1.0, "find": 1.0}
# Wall time, because a process that is stopped, or waits for a disk, uses no processor time.
_MAX_WALL_SECONDS = {"open": 180.0, "chat": 20.0, "encode": 20.0, "decode": 5.0, "find": 5.0}
# On Linux, in addition to the memory that the process has mapped after importing its libraries.
MAX_MEMORY_BYTES = 3 << 30

_PROGRAM = "mlxk2.runner.prompt.process"
_MAX_PROCESSES = 3  # For one model.
_BUSY_SECONDS = 1.0  # After this time, another process is started beside a busy one.
_CHECK_SECONDS = 0.1  # Between two checks of the memory and of whether the result is still needed.
_BLOCK_BYTES = 1 << 20  # Bytes of one read or write.
# In `struct rusage_info_v0` of macOS: the number of 64-bit fields (the first two are a UUID), and the memory's index.
_RUSAGE_FIELDS = 12
_FOOTPRINT = 9
# Make libraries silent, and let them use one thread.
_SETTINGS = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}

Result = tuple[dict[str, Any], "array[int]"]  # A JSON object and token ids.
IsCancelled = Callable[[], bool]


def never_cancelled() -> bool:
    """Return False, for work that is never cancelled."""
    return False


class ConfinedProcess:
    """A process that runs `process.py`; it is ready after a second, and handles one question after the other.

    If the kernel does not limit its memory, or with `watches_memory`, this process checks its memory, and ends it when
    it uses more than `max_memory` bytes.
    """

    def __init__(self, *, watches_memory: bool = False, max_memory: int = MAX_MEMORY_BYTES) -> None:
        self._max_memory = max_memory
        settings = {**os.environ, **VARIABLES, **_SETTINGS}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",  # The user's working folder can be missing.
            env={name: value for name, value in settings.items() if value is not None},
            start_new_session=True,  # Ctrl-C must not end it.
        )
        self._watches_memory = watches_memory or not _limits_memory(self._process.pid)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._write, self._read = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._write, False)
        os.set_blocking(self._read, False)
        self.close = weakref.finalize(self, _end, self._process)

    def kill(self) -> None:
        """End the process now; any thread may call this. A running `ask` raises an error."""
        self._process.kill()

    @property
    def is_alive(self) -> bool:
        """Whether the process can handle a question; a process that was stopped by a signal can't."""
        return self.close.alive and self._process.poll() is None and not self._is_stopped

    @property
    def _is_stopped(self) -> bool:
        # Python has waitid on macOS since 3.13; without it, a stopped process is noticed at the limit of wall time.
        if not hasattr(os, "waitid"):
            return False
        return os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None

    def ask(
        self,
        question: Mapping[str, Any],
        max_seconds: float | None = None,
        is_cancelled: IsCancelled = never_cancelled,
    ) -> Result:
        """Return the result of a question; `max_seconds` limits the wall time.

        After any error, end the process. Raise ModelError if the process gives no result, and OperationCancelled when
        `is_cancelled` returns true.
        """
        try:
            return self._exchange(question, max_seconds or _MAX_WALL_SECONDS[question["ask"]], is_cancelled)
        except BaseException:
            self.close()
            raise

    def _exchange(self, question: Mapping[str, Any], max_seconds: float, is_cancelled: IsCancelled) -> Result:
        deadline = time.monotonic() + max_seconds
        # JSON in ASCII, because a conversation can contain half a surrogate pair.
        left, received = memoryview(json.dumps(question).encode() + b"\n"), bytearray()
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        poll.register(self._write, select.POLLOUT)
        while True:
            events = poll.poll(_CHECK_SECONDS * 1000)
            for file, _ in events:
                if file == self._write:
                    with contextlib.suppress(BlockingIOError, BrokenPipeError):
                        left = left[os.write(self._write, left[:_BLOCK_BYTES]) :]
                    if not left:
                        poll.unregister(self._write)
                elif data := os.read(self._read, _BLOCK_BYTES):
                    received += data
                    if result := _parse(received):
                        return result
                else:
                    raise _death_error(self._process.wait(), question["ask"])
            if is_cancelled():
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
    """Return the result if it was received completely, or None."""
    end = received.find(b"\n")
    if end < 0:
        return None
    # The head is JSON. It is parsed again for each block of a large result, which has few blocks.
    head = json.loads(received[:end])
    if len(received) < end + 1 + head["bytes"]:
        return None
    ids = array("I")
    ids.frombytes(received[end + 1 :])
    return head, ids


def _silence_error() -> ModelError:
    return ModelError("The process of the model's tokenizer did not respond and was replaced. Try again.")


def _memory_error(limit: int) -> ModelError:
    return ModelNotRunnableError(
        f"The model's tokenizer needs more than {limit >> 20} MB of memory. "
        "Shorten the prompt, or choose another model."
    )


def _death_error(code: int, asked: str) -> ModelError:
    """Return the error for a process that ended with this code, which shows the exceeded limit."""
    limits = {
        -signal.SIGPROF: ("chat template", MAX_TEMPLATE_SECONDS),
        -signal.SIGVTALRM: ("tokenizer", MAX_CPU_SECONDS[asked]),
    }
    if code in limits:
        what, limit = limits[code]
        return ModelNotRunnableError(
            f"The model's {what} ran for more than {limit:g} seconds and was ended. "
            "Shorten the prompt, or choose another model."
        )
    if code == -signal.SIGABRT:
        return _memory_error(MAX_MEMORY_BYTES)
    return ModelError(f"The process of the model's tokenizer was ended ({code}). Try again.")


def _limits_memory(pid: int) -> bool:
    """Return whether the kernel limits the memory of a process that asks for it; macOS does not."""
    if not hasattr(resource, "prlimit"):
        return False
    try:
        resource.prlimit(pid, resource.RLIMIT_AS, resource.getrlimit(resource.RLIMIT_AS))
    except (OSError, ValueError):
        return False
    return True


def _used_memory(pid: int) -> int:
    """Return the memory of a process in bytes, including memory that macOS has compressed; 0 if it is unknown."""
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
    """Starts processes; with `keeps_spare`, always starts one in advance, so that the next one is ready at once."""

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
        """Return a new process that got no question yet."""
        with self._lock:
            spare, self._spare = self._spare, None
            if spare is not None and spare.is_alive:
                return spare
            if spare is not None:
                spare.close()
            return self._start()

    def stop(self) -> None:
        """End all started processes, and start no more; a process that still imports would outlive this one."""
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
        """With `keeps_spare`, start the next spare process."""
        if self._keeps_spare and not self._is_stopping:
            self.prepare()


class Pool:
    """The processes of one model: one, and more for some time while it is busy for long.

    `opening` is the first question to each process; `check` raises an error if its result is an error.
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

    def open(self, is_cancelled: IsCancelled = never_cancelled) -> Mapping[str, Any]:
        """Start the first process and return its result of the opening question."""
        process, result = self._start(is_cancelled)
        self._idle.append(process)
        self._starter.restock()
        return result

    def close(self) -> None:
        """End the idle processes."""
        with self._changed:
            while self._idle:
                self._idle.pop().close()

    def ask(self, question: Mapping[str, Any], is_cancelled: IsCancelled = never_cancelled) -> Result:
        """Ask one of the processes and return the result; raise the errors of `ConfinedProcess.ask`."""
        began = time.monotonic()
        with self._changed:
            while not self._idle and self._busy:
                if is_cancelled():
                    raise OperationCancelled("Interrupted.")
                if time.monotonic() > began + _BUSY_SECONDS and self._busy < _MAX_PROCESSES:
                    break
                self._changed.wait(_CHECK_SECONDS)
            self._busy += 1
            process = self._idle.pop() if self._idle else None
        try:
            if process is None or not process.is_alive:
                if process is not None:
                    process.close()
                process, _ = self._start(is_cancelled)
                self._starter.restock()
            return process.ask(question, is_cancelled=is_cancelled)
        finally:
            with self._changed:
                self._busy -= 1
                if process is not None and process.is_alive:
                    if self._idle:
                        process.close()
                    else:
                        self._idle.append(process)
                self._changed.notify()

    def _start(self, is_cancelled: IsCancelled) -> tuple[ConfinedProcess, Mapping[str, Any]]:
        process = self._starter.take()
        result, _ = process.ask(self._opening, is_cancelled=is_cancelled)
        self._check(result)
        return process, result
