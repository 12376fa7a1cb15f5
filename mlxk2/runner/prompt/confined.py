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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mlxk2.errors import InterruptedByUser, ModelError, ModelNotRunnableError, ServerStoppingError
from mlxk2.runner.limits import MEMORY, PATIENCE, SECONDS, TEMPLATE_SECONDS
from mlxk2.runner.offline import VARIABLES

_PROGRAM = "mlxk2.runner.prompt.process"
# Processes for one model, and the seconds after which another is started beside one that is busy.
_MAX_PROCESSES = 3
_BUSY = 1.0
# Seconds between two looks at whether the answer is still wanted, and at the memory.
_TICK = 0.1
_CHUNK = 1 << 20
# Of `struct rusage_info_v0` of macOS, in numbers of 64 bits; the first two are a UUID.
_RUSAGE_FIELDS = 12
_FOOTPRINT = 9
# Libraries stay silent, and use one thread.
_SETTINGS = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "TRANSFORMERS_VERBOSITY": "error", "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}  # fmt: skip

Answer = tuple[dict[str, Any], "array[int]"]
Cancelled = Callable[[], bool]


class _EndedError(Exception):
    """The process has ended, with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Confined:
    """A process of `process.py`: it is up after a second, and answers one question after the other.

    Where the kernel does not limit its memory, or `watches_memory` says so, it is watched from outside, and ended when
    it uses more than `memory`.
    """

    def __init__(self, *, watches_memory: bool = False, memory: int = MEMORY) -> None:
        self._limit = memory
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",  # the user's working folder may be gone
            env=_environment(),
            start_new_session=True,  # Ctrl-C is not meant for it
        )
        self._watches_memory = watches_memory or not _limits_memory(self._process.pid)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._write, self._read = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._write, False)
        os.set_blocking(self._read, False)
        self.close = weakref.finalize(self, _end, self._process)

    def kill(self) -> None:
        """End it now, from any thread; a question under way gets an error."""
        self._process.kill()

    @property
    def is_alive(self) -> bool:
        """Whether it can still be asked; one that was stopped would not answer."""
        return self.close.alive and self._process.poll() is None and not self._is_stopped

    @property
    def _is_stopped(self) -> bool:
        # Python has waitid on macOS since 3.13; without it the patience ends.
        if not hasattr(os, "waitid"):
            return False
        return os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None

    def ask(self, question: Mapping[str, Any], patience: float | None = None, cancelled: Cancelled = bool) -> Answer:
        """Return the answer, as its JSON and its token ids. Any fault on the way ends the process.

        `patience` is how many seconds of wall time it may take. Raises ModelError where it does not come to an end,
        InterruptedByUser where it was `cancelled`.
        """
        try:
            # Escaped, since a conversation may hold half a surrogate pair.
            deadline = time.monotonic() + (PATIENCE[question["ask"]] if patience is None else patience)
            return self._exchange(json.dumps(question).encode() + b"\n", deadline, cancelled)
        except _EndedError as ended:
            self.close()
            raise _death(ended.code, question["ask"]) from None
        except BaseException:
            self.close()
            raise

    def _exchange(self, question: bytes, deadline: float, cancelled: Cancelled) -> Answer:
        left, answer = memoryview(question), bytearray()
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        poll.register(self._write, select.POLLOUT)
        while True:
            events = poll.poll(_TICK * 1000)
            for file, _ in events:
                if file == self._write:
                    left = left[self._send(left) :]
                    if not left:
                        poll.unregister(self._write)
                elif data := os.read(self._read, _CHUNK):
                    answer += data
                    if found := _parse(answer):
                        return found
                else:
                    raise _EndedError(self._process.wait())
            self._check(deadline, cancelled)
            if not events:
                self._look()

    def _send(self, data: memoryview) -> int:
        try:
            return os.write(self._write, data[:_CHUNK])
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise _EndedError(self._process.wait()) from None

    def _check(self, deadline: float, cancelled: Cancelled) -> None:
        if cancelled():
            raise InterruptedByUser("Interrupted.")
        if time.monotonic() > deadline:
            raise _silent()

    def _look(self) -> None:
        if self._process.poll() is None and self._is_stopped:
            raise _silent()
        if self._watches_memory and _memory(self._process.pid) > self._limit:
            raise _needs_memory(self._limit)


def _parse(answer: bytearray) -> Answer | None:
    """Return an answer if it has come completely."""
    end = answer.find(b"\n")
    if end < 0:
        return None
    # Only the head is JSON; it is parsed again for each part of a large answer, of which there are few.
    head = json.loads(answer[:end])
    if len(answer) < end + 1 + head["bytes"]:
        return None
    ids = array("I")
    ids.frombytes(answer[end + 1 :])
    return head, ids


def _silent() -> ModelError:
    return ModelError("The process of the model's tokenizer does not answer, and was replaced. Try again.")


def _death(code: int, asked: str) -> ModelError:
    seconds = {
        -signal.SIGPROF: ("chat template", TEMPLATE_SECONDS),
        -signal.SIGVTALRM: ("tokenizer", SECONDS[asked]),
    }
    if code in seconds:
        what, limit = seconds[code]
        return ModelNotRunnableError(
            f"The model's {what} ran for more than {limit:g} seconds and was ended. "
            "Shorten the prompt, or choose another model."
        )
    if code == -signal.SIGABRT:
        return _needs_memory(MEMORY)
    return ModelError(f"The process of the model's tokenizer was ended ({code}). Try again.")


def _needs_memory(limit: int) -> ModelError:
    return ModelNotRunnableError(
        f"The model's tokenizer needs more than {limit >> 20} MB of memory. "
        "Shorten the prompt, or choose another model."
    )


def _environment() -> dict[str, str]:
    settings = {**os.environ, **VARIABLES, **_SETTINGS}
    return {name: value for name, value in settings.items() if value is not None}


def _limits_memory(pid: int) -> bool:
    """Whether the kernel limits the memory of a process that asks for it. macOS does not."""
    if not hasattr(resource, "prlimit"):
        return False
    try:
        resource.prlimit(pid, resource.RLIMIT_AS, resource.getrlimit(resource.RLIMIT_AS))
    except (OSError, ValueError):
        return False
    return True


def _memory(pid: int) -> int:
    """Return the bytes of memory that a process uses, with those that macOS has compressed; 0 where that is unknown."""
    usage = getattr(ctypes.CDLL(None), "proc_pid_rusage", None)
    if usage is not None:
        fields = (ctypes.c_uint64 * _RUSAGE_FIELDS)()
        if usage(pid, 0, fields) == 0:
            return int(fields[_FOOTPRINT])
    try:
        said = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
    except OSError:
        return 0
    return int(said.stdout.strip() or 0) << 10


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with contextlib.suppress(BrokenPipeError), process:
        pass


class Starter:
    """Starts processes; with `keeps_spare` one more is always on its way, so that the next need not be waited for."""

    def __init__(self, *, keeps_spare: bool = False) -> None:
        self._keeps_spare = keeps_spare
        self._lock = threading.Lock()
        self._spare: Confined | None = None
        self._started: weakref.WeakSet[Confined] = weakref.WeakSet()
        self._is_stopping = False

    def prepare(self) -> None:
        """Start a process that will be asked for soon."""
        with self._lock:
            if self._spare is None:
                self._spare = self._start()

    def take(self) -> Confined:
        """Return a process that nothing was asked of yet."""
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

    def _start(self) -> Confined:
        if self._is_stopping:
            raise ServerStoppingError
        process = Confined()
        self._started.add(process)
        return process

    def restock(self) -> None:
        """Start the spare process again, where one is kept."""
        if self._keeps_spare and not self._is_stopping:
            self.prepare()


class Pool:
    """The processes of one model: one, and for some time another where the first is busy for long.

    `opening` is the first question to each. Its answer is checked by `check`.
    """

    def __init__(
        self, starter: Starter, opening: Mapping[str, Any], check: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._starter = starter
        self._opening = opening
        self._check = check
        self._changed = threading.Condition()
        self._idle: list[Confined] = []
        self._busy = 0

    def open(self, cancelled: Cancelled = bool) -> Mapping[str, Any]:
        """Start the first process; return its answer to the opening question."""
        process, answer = self._start(cancelled)
        self._idle.append(process)
        self._starter.restock()
        return answer

    def close(self) -> None:
        """End the processes that are idle."""
        with self._changed:
            while self._idle:
                self._idle.pop().close()

    def ask(self, question: Mapping[str, Any], cancelled: Cancelled = bool) -> Answer:
        """Return the answer of one of the processes; raises what `Confined.ask` does."""
        with self._process(cancelled) as process:
            return process.ask(question, cancelled=cancelled)

    @contextmanager
    def _process(self, cancelled: Cancelled) -> Iterator[Confined]:
        process = self._acquire(cancelled)
        try:
            if process is None or not process.is_alive:
                if process is not None:
                    process.close()
                process, _ = self._start(cancelled)
                self._starter.restock()
            yield process
        finally:
            with self._changed:
                self._busy -= 1
                if process is not None and process.is_alive:
                    if self._idle:
                        process.close()
                    else:
                        self._idle.append(process)
                self._changed.notify()

    def _acquire(self, cancelled: Cancelled) -> Confined | None:
        """Wait for a process; return None where one is to be started."""
        began = time.monotonic()
        with self._changed:
            while not self._idle and self._busy:
                if cancelled():
                    raise InterruptedByUser("Interrupted.")
                if time.monotonic() > began + _BUSY and self._busy < _MAX_PROCESSES:
                    break
                self._changed.wait(_TICK)
            self._busy += 1
            return self._idle.pop() if self._idle else None

    def _start(self, cancelled: Cancelled) -> tuple[Confined, Mapping[str, Any]]:
        process = self._starter.take()
        answer, _ = process.ask(self._opening, cancelled=cancelled)
        self._check(answer)
        return process, answer
