"""Kill the program right before its first change to the disk, before its second, and so on to its last.

This reaches every state in which a kill can leave the disk, except half-written files.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from conftest import Result
from support.fuzz import ALL_CASES, EFFORT

_SERVER = Path(__file__).with_name("killing_server.py")


class Killable:
    """Runs the program many times in one environment, in forks of a process that has already imported it."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def run(self, *words: str, before: int | None = None) -> Result:
        """Run the program with these words to its end, or kill it `before` its n-th change, counted from 0."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps([words, before]) + "\n")
        self._server.stdin.flush()
        return Result(*json.loads(self._server.stdout.readline()))

    def kills(self, *words: str, prepare: Callable[[], object]) -> Iterator[None]:
        """Call `prepare` and kill a run before its n-th change, for every n; yield after each kill.

        `make test` takes every third n.
        """
        for number in count(step=1 if EFFORT >= ALL_CASES else 3):
            prepare()
            result = self.run(*words, before=number)
            if result.code != -signal.SIGKILL:
                assert (result.code, number > 0) == (0, True), result
                return
            yield


@contextmanager
def killable(environment: Mapping[str, str]) -> Iterator[Killable]:
    """Yield the program in an environment."""
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, _SERVER], env=environment, text=True, **streams) as server:
        yield Killable(server)
