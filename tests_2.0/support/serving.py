"""The server under test: the real program as a process of its own, with a cache of its own."""

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
from support.layouts import SENTINEL, Hub

# Seconds: importing MLX on a machine that is busy with other tests takes long.
START = 60.0
END = 15.0


@contextlib.contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """The ends of a pipe that holds as much as it can."""
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


def hub_of(home: Path) -> Hub:
    """The cache of a server with this home, to be filled with models; it is made if it is not there."""
    path = home / "hf" / "hub"
    path.mkdir(parents=True, exist_ok=True)
    (path / SENTINEL).write_text("This cache belongs to a test.\n")
    return Hub(path)


class Server:
    """`mlxk2 serve` on a free port: `with Server("--model", "demo", home=tmp_path) as server: ...`.

    It is ready when the block begins: /health says so, unless `ready` is False; then the port answers. `environment`
    adds variables; `stderr` is a descriptor to write to, in place of what `err` gives. However the block ends, the
    process and all that it started are gone after it.
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
        self.hub = hub_of(home)
        self._ready = ready
        self._err = tempfile.TemporaryFile(dir=home)  # noqa: SIM115 - open as long as the server
        self.process = subprocess.Popen(
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
        """Where it answers, without a slash at the end."""
        return str(self.envelope["data"]["url"])

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.envelope["data"]["port"])

    @property
    def err(self) -> str:
        """All that it has written to stderr so far."""
        return os.pread(self._err.fileno(), 1 << 20, 0).decode("utf-8", "replace")

    def line(self) -> str:
        """The next line of stdout; a failure with its stderr if it ends, or time runs out, without one."""
        assert self.process.stdout is not None
        watchdog = threading.Timer(START, self._kill)
        watchdog.start()
        line = self.process.stdout.readline().decode()
        watchdog.cancel()
        assert line, f"The server ended with {self.process.wait(END)} and said:\n{self.err}"
        return line

    def wait_until_ready(self) -> None:
        """Wait until /health is 200, so that the model of the start is loaded."""
        deadline = time.monotonic() + START
        while httpx.get(f"{self.url}/health", timeout=START).status_code != 200:
            assert time.monotonic() < deadline, f"The server does not get ready. It said:\n{self.err}"
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it with a signal; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(END)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def environment_of(home: Path) -> dict[str, str]:
    """The environment of a user who has nothing but this home."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "TMPDIR") if name in os.environ}
    cache = {"HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "caches")}
    return kept | cache | {"HOME": str(home), "LANG": "C.UTF-8", "MLXK2_STRICT_TEST_DELETE": "1"}
