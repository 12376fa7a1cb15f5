"""Prompts of several clients: none waits for slow prompts of another or for tokenizers that load without end."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import say, write_chain

from mlxk2.errors import ServerBusyError
from mlxk2.runner.prompt.confined import Starter
from mlxk2.runner.request import GenerationRequest
from mlxk2.server.messages import ModelKey
from mlxk2.server.preparing import Prepared, PreparingPool

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def paris(tmp_path_factory: pytest.TempPathFactory) -> ModelKey:
    """Return a model."""
    folder = write_chain(tmp_path_factory.mktemp("models") / "paris", say("Par", "is", "!"))
    return ModelKey("paris", str(folder))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Yield the event that slow prompts wait for; set it at the end."""
    made = threading.Event()
    yield made
    made.set()


def make_at_once(_: Any) -> Sequence[GenerationRequest]:
    """Return a prompt at once."""
    return [GenerationRequest((1, 2), 1)]


async def prepare_slowly(
    preparing: PreparingPool, key: ModelKey, client: str, gate: threading.Event, names: list[str]
) -> Prepared:
    """Prepare a prompt that is ready once the gate is open; record its client at the start."""

    def make(_: Any) -> Sequence[GenerationRequest]:
        names.append(client)
        assert gate.wait(60)
        return make_at_once(None)

    return await preparing.prepare(key, make, client)


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test, for a minute at most."""
    asyncio.run(asyncio.wait_for(test, 60))


def test_slow_prompts_of_one_client_do_not_delay_others(paris: ModelKey, gate: threading.Event) -> None:
    async def test() -> None:
        preparing = PreparingPool(Starter(), 100)
        names: list[str] = []
        slow = [asyncio.ensure_future(prepare_slowly(preparing, paris, "many", gate, names)) for _ in range(20)]
        while not names:
            await asyncio.sleep(0.01)
        for _ in range(5):
            await preparing.prepare(paris, make_at_once, "one")
        assert not any(task.done() for task in slow)
        gate.set()
        await asyncio.gather(*slow)
        preparing.close()

    run(test())


def test_a_full_queue_refuses_the_client_with_the_most_prompts(paris: ModelKey, gate: threading.Event) -> None:
    async def test() -> None:
        preparing = PreparingPool(Starter(), 5)
        names: list[str] = []
        slow = [asyncio.ensure_future(prepare_slowly(preparing, paris, "many", gate, names)) for _ in range(5)]
        while not names:
            await asyncio.sleep(0.01)
        await preparing.prepare(paris, make_at_once, "one")
        refused = [task for task in slow if task.done()]
        assert refused == slow[-1:]
        with pytest.raises(ServerBusyError):
            await refused[0]
        gate.set()
        await asyncio.gather(*slow[:-1])
        preparing.close()

    run(test())


def test_clients_that_leave_while_a_tokenizer_loads_do_not_block_others(paris: ModelKey, tmp_path: Path) -> None:
    async def test() -> None:
        folder = write_chain(tmp_path / "endless", say("Par", "is", "!"))
        (folder / "tokenizer.json").unlink()
        # Reading this file blocks.
        os.mkfifo(folder / "tokenizer.json")
        endless = ModelKey("endless", str(folder))
        preparing = PreparingPool(Starter(), 100)
        first = asyncio.ensure_future(preparing.prepare(endless, make_at_once, "first"))
        for number in range(50):
            gone = asyncio.ensure_future(preparing.prepare(endless, make_at_once, f"{number}"))
            await asyncio.sleep(0.01)
            gone.cancel()
        await preparing.prepare(paris, make_at_once, "one")
        assert not first.done()
        first.cancel()
        preparing.close()

    run(test())
