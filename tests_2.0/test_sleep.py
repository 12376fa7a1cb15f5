"""The machine stays awake during work, with a stand-in for macOS's `caffeinate`."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from conftest_runner import saying
from support.application import CHAT, serving
from support.hub import HubServer
from support.hub.fixtures import Client
from support.layouts import chat_model

from mlxk2.sleep import NoSleep

STAND_IN = """#!/bin/sh
echo "$$ $@" >> "{log}"
exec sleep 1000
"""
PULL = """
import os, sys
from contextlib import nullcontext
from mlxk2.commands import pull
from mlxk2.commands.context import Context, Streams
from mlxk2.sleep import NoSleep
context = Context(
    streams=Streams(sys.stdin, sys.stdout, sys.stderr), environment=os.environ, is_json=False,
    progress=lambda title, total: nullcontext(lambda count: None), no_sleep=NoSleep("darwin"),
    announce=print, detach=print, leave=sys.exit,
)
pull.run(pull.Options(model="org/model", force=False), context)
"""


class Caffeinate:
    """The stand-in: its recorded arguments and its living processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = folder / "log"
        program = folder / "caffeinate"
        program.write_text(STAND_IN.format(log=self._log))
        program.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        """Return the arguments of every process so far."""
        return [line.split(maxsplit=1)[1] for line in self._lines()]

    @property
    def living(self) -> int:
        """Return the number of its living processes."""
        return sum(_lives(int(line.split()[0])) for line in self._lines())

    def wait_for(self, living: int) -> None:
        """Wait until this many processes live."""
        deadline = time.monotonic() + 30
        while self.living != living or (living and not self._lines()):
            assert time.monotonic() < deadline, (self.living, living)
            time.sleep(0.01)

    def _lines(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def caffeinate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caffeinate:
    """Return the stand-in, which is first on the path."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return Caffeinate(tmp_path / "bin")


def test_one_process_keeps_the_machine_awake_until_all_work_ends(caffeinate: Caffeinate) -> None:
    no_sleep = NoSleep("darwin")
    for _ in range(2):
        with no_sleep.hold():
            caffeinate.wait_for(1)
            with no_sleep.hold(), no_sleep.hold():
                assert caffeinate.living == 1
            assert caffeinate.living == 1
        assert caffeinate.living == 0
    assert caffeinate.asked == [f"-i -w {os.getpid()}"] * 2


def test_work_that_follows_soon_reuses_the_process(caffeinate: Caffeinate) -> None:
    no_sleep = NoSleep("darwin", linger=0.5)
    threads = [threading.Thread(target=_work, args=[no_sleep]) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    caffeinate.wait_for(0)
    assert len(caffeinate.asked) == 1


def _work(no_sleep: NoSleep) -> None:
    for _ in range(5):
        with no_sleep.hold():
            time.sleep(0.01)


def test_systems_without_caffeinate_work_without_it(caffeinate: Caffeinate, monkeypatch: pytest.MonkeyPatch) -> None:
    with NoSleep("linux").hold():
        pass
    monkeypatch.setenv("PATH", str(caffeinate.folder.parent))
    with NoSleep("darwin").hold():
        pass
    assert caffeinate.asked == []


def test_an_answer_of_the_server_keeps_the_machine_awake(caffeinate: Caffeinate) -> None:
    with serving(saying("Hello"), no_sleep=NoSleep("darwin")) as client:
        client.get("/health")
        assert caffeinate.asked == []
        client.ask(CHAT)
        assert len(caffeinate.asked) == 1
        client.events(CHAT)
        assert len(caffeinate.asked) == 2
        caffeinate.wait_for(0)


def test_a_pull_keeps_the_machine_awake(caffeinate: Caffeinate, hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add("org/model", chat_model())
    hub_client.python(PULL, PATH=os.environ["PATH"])
    assert len(caffeinate.asked) == 1
    caffeinate.wait_for(0)
