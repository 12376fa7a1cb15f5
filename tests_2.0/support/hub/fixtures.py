"""The local hub as a fixture, and the program as a separate process that uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import starting
from support.hub.server import HubServer

PROGRAM = (sys.executable, "-m", "mlxk2")
WAIT_SECONDS = 60


class Outcome(NamedTuple):
    """The exit code and the output of one run of the program."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Return the one JSON document on stdout."""
        return json.loads(self.out)


class Client:
    """Runs the program in an environment that knows the local hub and no other network."""

    def __init__(self, server: HubServer, home: Path) -> None:
        self.server = server
        self.home = home
        self.cache_dir = home / "hub"
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
        return outcome_of(self.start(*words, **settings))

    def start(self, *words: str, **settings: str) -> subprocess.Popen[str]:
        """Start the program with these words and these extra environment variables."""
        return self.start_command(*PROGRAM, *words, **settings)

    def start_command(self, *command: str, **settings: str) -> subprocess.Popen[str]:
        """Start any command in the program's environment."""
        return starting.Popen(
            list(command),
            env=self.environment | settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def python(self, code: str, **settings: str) -> str:
        """Run Python code in the program's environment and return what it printed."""
        environment = self.environment | settings
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
        ).stdout


def outcome_of(process: subprocess.Popen[str]) -> Outcome:
    """Wait for a started program and return its outcome."""
    out, err = process.communicate(timeout=WAIT_SECONDS)
    return Outcome(process.returncode, out, err)


@pytest.fixture
def hub_server(tmp_path: Path) -> Iterator[HubServer]:
    """Yield a running, empty local hub."""
    with HubServer(tmp_path / "server") as running:
        yield running


@pytest.fixture
def hub_client(hub_server: HubServer, tmp_path: Path) -> Client:
    """Return the program with the local hub and an empty cache."""
    return Client(hub_server, tmp_path / "home")
