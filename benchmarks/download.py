"""Measure how long `mlxk2 pull` takes, compared with `hf download`, from the same hub on this machine."""

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
    """A repo of `count` files with `size` bytes each; with `is_xet`, they are also in a Xet store."""

    what: str
    count: int
    size: int
    is_xet: bool = False
    at_most: float | None = 1.1

    @property
    def name(self) -> str:
        """The repo's name on the hub."""
        return f"org/{self.what.replace(' ', '-')}"


REPOS = (
    Repo("4 files of 64 MB", 4, 64 * MEGABYTE),
    Repo("1 file of 256 MB", 1, 256 * MEGABYTE),
    Repo("60 files of 20 KB", 60, 20_000),
    # The network takes no time here, so this measures little more than hashing.
    Repo("4 files of 64 MB over Xet", 4, 64 * MEGABYTE, is_xet=True, at_most=None),
)


def _files(repo: Repo) -> dict[str, bytes]:
    rolls = random.Random(repo.count)
    return {f"part-{number}.safetensors": rolls.randbytes(repo.size) for number in range(repo.count)}


def _time_download(command: str, words: tuple[str, ...], home: Path, environment: Mapping[str, str]) -> float:
    """Return the seconds of a download into a new cache, and remove the cache."""
    program = str(Path(sys.executable).with_name(command))
    # Write earlier data to the disk first, so that this download does not wait for it.
    os.sync()
    try:
        return rounds.run([program, *words], {**environment, "HF_HOME": str(home)}).seconds
    finally:
        shutil.rmtree(home)


def measure(server: Any, repo: Repo, folder: Path) -> rounds.Figure:
    """Pull and download a repo alternately."""
    environment = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": ""}

    def timer(command: str, *words: str) -> Callable[[], float]:
        return lambda: _time_download(command, (*words, repo.name), folder / command, environment)

    pairs = rounds.alternate(timer("mlxk2", "pull", "--json"), timer("hf", "download", "--quiet"))
    return rounds.compare(f"download {repo.what}", pairs, "s", ("mlxk2 pull", "hf download"), at_most=repo.at_most)


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
