"""The server under test: the real program as a separate process with its own cache."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from support import starting
from support.layouts import SENTINEL, CacheDir

# In seconds; importing MLX takes long on a machine that is busy with other tests.
START = 60.0
END = 15.0


@contextlib.contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """Yield the reading and the writing end of a full pipe."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def cache_dir_of(home: Path) -> CacheDir:
    """Return the cache of a server with this home; create it if it is missing."""
    path = home / "hf" / "hub"
    path.mkdir(parents=True, exist_ok=True)
    (path / SENTINEL).write_text("This cache belongs to a test.\n")
    return CacheDir(path)


class Server:
    """`mlxk2 serve` on a free port: `with Server("--model", "demo", home=tmp_path) as server: ...`.

    When the block begins, /health is 200; with `ready=False`, the port is open. `environment` adds variables; `stderr`
    is a descriptor to write to, and `err` is then empty. When the block ends, the process and its children are killed.
    """

    envelope: dict[str, Any]

    def __init__(
        self,
        *arguments: str,
        home: Path,
        environment: Mapping[str, str] | None = None,
        ready: bool = True,
        command: Sequence[str] = ("serve", "--json"),
        stderr: int | None = None,
    ) -> None:
        self.home = home
        self.cache_dir = cache_dir_of(home)
        self._ready = ready
        self._err = tempfile.TemporaryFile(dir=home)  # noqa: SIM115 - open as long as the server
        self.process = starting.Popen[bytes](
            [sys.executable, "-m", "mlxk2", *command, "--port", "0", *arguments],
            cwd=home,
            env=environment_of(home) | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._err if stderr is None else stderr,
            start_new_session=True,
        )

    def __enter__(self) -> Server:
        try:
            self.envelope = json.loads(self.line())
            assert self.envelope["status"] == "success", self.envelope
            if self._ready:
                self.wait_until_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"The server's stderr:\n{self.err}")
        self._kill()
        self.process.wait(END)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._err.close()

    @property
    def url(self) -> str:
        """Return the server's address, without a slash at the end."""
        return str(self.envelope["data"]["url"])

    @property
    def port(self) -> int:
        """Return the port of the server."""
        return int(self.envelope["data"]["port"])

    @property
    def err(self) -> str:
        """Return everything on stderr so far."""
        size = os.fstat(self._err.fileno()).st_size
        return os.pread(self._err.fileno(), size, 0).decode("utf-8", "replace")

    @property
    def complaints(self) -> list[str]:
        """Return the lines on stderr so far, without those that the log always has: requests, loads and the end."""
        return [line for line in self.err.splitlines() if not line.startswith("INFO: ")]

    def line(self) -> str:
        """Return the next line of stdout; fail with the server's stderr if it ends or the time runs out first."""
        assert self.process.stdout is not None
        watchdog = threading.Timer(START, self._kill)
        watchdog.start()
        line = self.process.stdout.readline().decode()
        watchdog.cancel()
        assert line, f"The server ended with {self.process.wait(END)} and said:\n{self.err}"
        return line

    def wait_until_ready(self) -> None:
        """Wait until /health is 200: the first model is then in memory."""
        deadline = time.monotonic() + START
        while httpx.get(f"{self.url}/health", timeout=START).status_code != 200:
            assert time.monotonic() < deadline, f"The server does not get ready. It said:\n{self.err}"
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the server with a signal and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(END)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def environment_of(home: Path) -> dict[str, str]:
    """Return the environment of a user who has nothing but this home."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "TMPDIR") if name in os.environ}
    cache = {"HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "caches")}
    return kept | cache | {"HOME": str(home), "LANG": "C.UTF-8", "MLXK2_STRICT_TEST_DELETE": "1"}
