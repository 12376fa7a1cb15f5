"""Many files from the hub at once: a few threads, one progress, and an end for all as soon as one fails."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterable
from threading import Event, Thread
from typing import TYPE_CHECKING, NamedTuple

from mlxk2.cache.staging import Delivery, Wanted
from mlxk2.hub.transfer import Source, fetch

if TYPE_CHECKING:
    from mlxk2.formatting import Advance

WORKERS = 8


class Fetched(NamedTuple):
    """How one file came: how many of its bytes an earlier attempt had left, or why it did not come at all."""

    resumed: int
    fault: BaseException | None = None


def fetch_all(source: Source, files: Iterable[Wanted], delivery: Delivery, advance: Advance) -> int:
    """Stage these files, verified by their hashes; how many bytes earlier attempts had left.

    The first fault is raised as it is; what came until then stays for the next attempt.
    """
    stop = Event()
    todo: queue.SimpleQueue[Wanted] = queue.SimpleQueue()
    done: queue.SimpleQueue[Fetched] = queue.SimpleQueue()
    # The largest first, so that no thread is left alone with it at the end.
    wanted = sorted({file.blob: file for file in files}.values(), key=lambda file: -file.size)
    for file in wanted:
        todo.put(file)

    def stage(file: Wanted) -> int:
        partial = delivery.partial(file)
        resumed = fetch(source, file, partial, advance, stop)
        os.replace(partial, delivery.staged(file))
        return resumed

    # Threads that the interpreter does not wait for: Ctrl-C ends the program at once, as safely as a kill does.
    for _ in range(min(WORKERS, len(wanted))):
        Thread(target=_work, args=(todo, done, stage), daemon=True).start()
    try:
        return sum(_result(done.get()) for _ in wanted)
    finally:
        stop.set()


def _work(
    todo: queue.SimpleQueue[Wanted], done: queue.SimpleQueue[Fetched], stage: Callable[[Wanted], int]
) -> None:
    while True:
        try:
            file = todo.get_nowait()
        except queue.Empty:
            return
        try:
            done.put(Fetched(stage(file)))
        except BaseException as fault:  # noqa: BLE001 - also a panic in Rust: it is raised where the results are collected
            done.put(Fetched(0, fault))
            return


def _result(fetched: Fetched) -> int:
    if fetched.fault is not None:
        raise fetched.fault
    return fetched.resumed
