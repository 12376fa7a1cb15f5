"""The command line beside the server: every command is a process whose JSON document is checked."""

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
# Seconds that a command may take on a busy machine.
_PATIENCE = 180.0
# Bytes that a file may have at most where the disk itself can't be filled.
_SMALL_FILE = 1 << 20


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
        """Run a command and return its data; None if it failed, with one of these errors or with a reported fault.

        A `limited` command can't write large files.
        """
        command = " ".join(words)
        ended = await self.ended(await self.start(*words, limited=limited))
        if ended is None:
            self._judge.complain(f"`{command}` took more than {_PATIENCE:g} s")
            return None
        complaint, document = self._checked(ended)
        error = (document or {}).get("error")
        if complaint is None and error and error["type"] not in may_fail:
            complaint = f"{error}"
        if complaint is not None:
            said = ended.err.decode(errors="replace")[-2000:]
            self._judge.complain(f"`{command}` ended with {ended.code}: {complaint}\n{said}")
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

    async def ended(self, process: asyncio.subprocess.Process) -> Ended | None:
        """Return the end of a command; None if it took too long and was killed."""
        try:
            async with asyncio.timeout(_PATIENCE):
                out, err = await process.communicate()
        except TimeoutError:
            return None
        finally:
            kill(process)
        assert process.returncode is not None
        return Ended(process.returncode, out, err)

    def _checked(self, ended: Ended) -> tuple[str | None, Any]:
        """Return what is wrong with the end of a command, and its document."""
        if b"Traceback" in ended.err:
            return "a traceback", None
        try:
            document = json.loads(ended.out)
        except ValueError:
            return f"no JSON: {ended.out[:500]!r}", None
        if fault := next(self._validator.iter_errors(document), None):
            return f"against the schema: {fault.message[:500]}", None
        if (ended.code == 0) != (document["status"] == "success") or ended.code not in (0, 1):
            return f"exit code {ended.code} with {document}", None
        return None, document


def kill(process: asyncio.subprocess.Process) -> None:
    """Kill a command and its children, if it is still running."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _forbid_large_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (_SMALL_FILE, _SMALL_FILE))
