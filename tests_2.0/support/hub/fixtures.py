"""The local hub as a fixture, and the program run against it as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.hub.server import HubServer

PROGRAM = (sys.executable, "-m", "mlxk2")
WAIT_SECONDS = 60


class Outcome(NamedTuple):
    """How a run of the program ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


class Client:
    """The program in an environment of its own, which knows the local hub and no other network."""

    def __init__(self, server: HubServer, home: Path) -> None:
        self.server = server
        self.home = home
        self.hub = home / "hub"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
        self.environment = inherited | {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(home),
            "HF_XET_CACHE": str(home / "xet"),
            "XDG_CACHE_HOME": str(home / "caches"),
            "MLXK2_ENABLE_ALPHA_FEATURES": "1",
            "NO_PROXY": "*",
        }

    def run(self, *words: str, **settings: str) -> Outcome:
        """Run the program to its end."""
        return ended(self.start(*words, **settings))

    def start(self, *words: str, **settings: str) -> subprocess.Popen[str]:
        """Start the program with these words, and these variables besides."""
        return self.start_command(*PROGRAM, *words, **settings)

    def start_command(self, *command: str, **settings: str) -> subprocess.Popen[str]:
        """Start any command in the program's environment."""
        return subprocess.Popen(
            command,
            env=self.environment | settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def python(self, code: str, **settings: str) -> str:
        """Run Python code in the program's environment; what it printed."""
        environment = self.environment | settings
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
        ).stdout


def ended(process: subprocess.Popen[str]) -> Outcome:
    """What a started program said, when it has ended."""
    out, err = process.communicate(timeout=WAIT_SECONDS)
    return Outcome(process.returncode, out, err)


@pytest.fixture
def hub_server(tmp_path: Path) -> Iterator[HubServer]:
    """A local hub, with nothing in it yet."""
    with HubServer(tmp_path / "server") as running:
        yield running


@pytest.fixture
def hub_client(hub_server: HubServer, tmp_path: Path) -> Client:
    """The program, as a process that knows the local hub, with an empty cache."""
    return Client(hub_server, tmp_path / "home")
