"""How long `mlxk2 pull` takes against `hf download`, from the same hub on this machine."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import rounds

MEGABYTE = 1_000_000
TESTS = Path(__file__).parents[1] / "tests_2.0"


class Repo(NamedTuple):
    """A repo of `count` files with `size` bytes each; one with `is_xet` has them in a Xet store, too."""

    what: str
    count: int
    size: int
    is_xet: bool = False
    at_most: float | None = 1.1

    @property
    def name(self) -> str:
        """Its name on the hub."""
        return f"org/{self.what.replace(' ', '-')}"


REPOS = (
    Repo("4 files of 64 MB", 4, 64 * MEGABYTE),
    Repo("1 file of 256 MB", 1, 256 * MEGABYTE),
    Repo("60 files of 20 KB", 60, 20_000),
    # Here the network takes no time, so that hashing what came is all that is left to see.
    Repo("4 files of 64 MB over Xet", 4, 64 * MEGABYTE, is_xet=True, at_most=None),
)


def _files(repo: Repo) -> dict[str, bytes]:
    rolls = random.Random(repo.count)
    return {f"part-{number}.safetensors": rolls.randbytes(repo.size) for number in range(repo.count)}


def _timed(command: str, words: tuple[str, ...], home: Path, environment: Mapping[str, str]) -> float:
    """Return the seconds of a download into a new cache, which goes away."""
    program = str(Path(sys.executable).with_name(command))
    # What was written before is on the disk: nobody waits for the bytes of another.
    os.sync()
    try:
        return rounds.run([program, *words], {**environment, "HF_HOME": str(home)}).seconds
    finally:
        shutil.rmtree(home)


def measure(server: Any, repo: Repo, folder: Path) -> rounds.Figure:
    """Pull and download a repo in turns."""
    environment = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": ""}

    def timed(command: str, *words: str) -> Callable[[], float]:
        return lambda: _timed(command, (*words, repo.name), folder / command, environment)

    pairs = rounds.paired(timed("mlxk2", "pull", "--json"), timed("hf", "download", "--quiet"))
    return rounds.compared(f"download {repo.what}", pairs, "s", ("mlxk2 pull", "hf download"), at_most=repo.at_most)


def main() -> int:
    """Start the hub, measure, print, and return the exit status."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.path.append(str(TESTS))
    with rounds.workspace(None) as folder, import_module("support.hub").HubServer(folder / "server") as server:
        for repo in REPOS:
            server.add(repo.name, _files(repo), is_xet=repo.is_xet)
        return rounds.verdict([measure(server, repo, folder) for repo in REPOS])


if __name__ == "__main__":
    sys.exit(main())
