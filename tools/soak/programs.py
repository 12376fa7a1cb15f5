"""Run commands at the same time as the server: every command is a process, and its JSON document is checked."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator  # type: ignore[import-untyped,unused-ignore]
from judge import Judge
from world import World

_SCHEMA = Path(__file__).parents[2] / "docs" / "json-api-schema.json"
_MAX_SECONDS = 180.0  # For a command on a busy machine.
_MAX_FILE_BYTES = 1 << 20  # The limit of file sizes that simulates a full disk.


class Ended(NamedTuple):
    """The end of a command: exit code and output."""

    code: int
    out: bytes
    err: bytes


class Programs:
    """Starts commands and reports their faults to the judge."""

    def __init__(self, world: World, judge: Judge) -> None:
        self._world = world
        self._judge = judge
        self._validator = Draft202012Validator(json.loads(_SCHEMA.read_text(encoding="utf-8")))

    async def run(self, *words: str, may_fail: Collection[str] = (), limited: bool = False) -> Any:
        """Run a command and return its data; None if it failed.

        Errors in `may_fail` are expected; report all others to the judge. A `limited` command can't write large files.
        """
        command = " ".join(words)
        ended = await self.wait(await self.start(*words, limited=limited))
        if ended is None:
            self._judge.complain(f"`{command}` took more than {_MAX_SECONDS:g} s")
            return None
        complaint, document = self._check(ended)
        error = (document or {}).get("error")
        if complaint is None and error and error["type"] not in may_fail:
            complaint = f"{error}"
        if complaint is not None:
            stderr = ended.err.decode(errors="replace")[-2000:]
            self._judge.complain(f"`{command}` ended with {ended.code}: {complaint}\n{stderr}")
            return None
        self._judge.counts[f"command: {words[0]} {error['type'] if error else 'success'}"] += 1
        return None if error or document is None else document["data"]

    async def start(self, *words: str, limited: bool = False) -> asyncio.subprocess.Process:
        """Start a command."""
        prepare: Callable[[], None] | None = _forbid_large_files if limited else None
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "mlxk2",
            *words,
            "--json",
            cwd=self._world.home,
            env=self._world.environment,
            start_new_session=True,
            preexec_fn=prepare,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def wait(self, process: asyncio.subprocess.Process) -> Ended | None:
        """Wait for the end of a command; kill it and return None if it takes too long."""
        try:
            async with asyncio.timeout(_MAX_SECONDS):
                out, err = await process.communicate()
        except TimeoutError:
            return None
        finally:
            kill(process)
        assert process.returncode is not None
        return Ended(process.returncode, out, err)

    def _check(self, ended: Ended) -> tuple[str | None, Any]:
        """Return what is wrong with the end of a command (or None), and its document."""
        if b"Traceback" in ended.err:
            return "a traceback", None
        try:
            document = json.loads(ended.out)
        except ValueError:
            return f"no JSON: {ended.out[:500]!r}", None
        if fault := next(self._validator.iter_errors(document), None):
            return f"violates the schema: {fault.message[:500]}", None
        if (ended.code == 0) != (document["status"] == "success") or ended.code not in (0, 1):
            return f"exit code {ended.code} with {document}", None
        return None, document


def kill(process: asyncio.subprocess.Process) -> None:
    """Kill a command and its children, if it is still running."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _forbid_large_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
