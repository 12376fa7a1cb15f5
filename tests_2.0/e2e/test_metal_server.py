"""The server on a simulated Mac GPU: wired memory, warm-up, and memory that is freed when it is idle."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from support.serving import Server
from support.starting import python_path

pytestmark = pytest.mark.e2e

FAKE_GPU = Path(__file__).parents[1] / "support" / "fake_gpu"


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


@pytest.mark.parametrize(("chosen", "expected"), [({}, 2), ({"MLXK2_WIRED_LIMIT": "0"}, 0)], ids=["default", "never"])
def test_the_server_wires_once_warms_up_and_frees_memory_when_idle(
    chosen: dict[str, str], expected: int, tmp_path: Path
) -> None:
    log = tmp_path / "metal.log"
    path = python_path(FAKE_GPU)
    environment = {"METAL_LOG": str(log), "PYTHONPATH": path, **chosen}
    with Server("--model", "demo", home=tmp_path, environment=environment) as server:
        before = log.read_text().splitlines()
        # The warm-up generated a token before the first request.
        assert "step" in before
        wired = [line for line in before if line.startswith("wired")]
        assert len(wired) == expected
        body = {"messages": [{"role": "user", "content": "What is 3 + 4?"}], "temperature": 0}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
        assert answer["choices"][0]["message"]["content"] == "3 + 4 = 7."
        wait_for(lambda: log.read_text().splitlines()[-1] == "clear")
        assert server.stop() == 0
        assert [line for line in log.read_text().splitlines() if line.startswith("wired")] == wired
        assert server.complaints == []
