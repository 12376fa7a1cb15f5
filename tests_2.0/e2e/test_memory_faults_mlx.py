"""A fault of memory: what the failed batch held is given back before its sequences are tested alone."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from support.following import FollowedRunner, finished
from support.tiny_models import BABBLE, write_chain

from mlxk2.runner.mlx.loader import LoadedModel, load
from mlxk2.runner.prompt_cache import PromptCache
from mlxk2.runner.request import GenerationRequest, Sampling
from mlxk2.runner.sequences import Batch
from mlxk2.server.messages import Load, LoadFailed, ModelKey, Report
from mlxk2.server.worker import Worker

pytestmark = pytest.mark.e2e

_METAL = RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")


@pytest.fixture(scope="module")
def babble(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Return a model that writes random letters without end."""
    return load(write_chain(tmp_path_factory.mktemp("models") / "babble", BABBLE))


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Turn the garbage collector off, so that it frees nothing by chance."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Failing:
    """A model that fails once, in its fifth step with several sequences, and records what it held."""

    def __init__(self, model: Any, fail: Callable[[], object]) -> None:
        self._model, self._fail = model, fail
        self._steps = 0
        self.held: list[weakref.ref[Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        self._steps += inputs.shape[0] > 1 and inputs.shape[1] == 1
        if self._steps == 5:
            self._steps += 1
            self.held += [weakref.ref(layer) for layer in cache]
            try:
                self._fail()
            except LookupError as fault:
                raise RuntimeError(str(_METAL)) from fault
        logits: mx.array = self._model(inputs, cache=cache)
        return logits


class Watched:
    """A backend that records for each new batch the cleared caches, the cached bytes and the living batches."""

    def __init__(self, model: LoadedModel, cleared: list[None]) -> None:
        self._model, self._cleared = model, cleared
        self._batches: list[weakref.ref[Batch]] = []
        self.noted: list[tuple[int, int, list[bool]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def batch(self, max_sequences: int, prompts: PromptCache) -> Batch:
        """Return a batch of the model."""
        self.noted.append((len(self._cleared), len(prompts), [batch() is not None for batch in self._batches]))
        batch = self._model.batch(max_sequences, prompts)
        self._batches.append(weakref.ref(batch))
        return batch


def _raise(fault: Exception) -> None:
    raise fault


def make_request(model: LoadedModel, text: str) -> GenerationRequest:
    """Return a request with a prompt long enough for the cache."""
    return GenerationRequest(tuple(model.tokenizer.encode(text * 100)), 12, Sampling(seed=1))


@pytest.mark.usefixtures("uncollected")
def test_a_failed_batch_is_freed_before_its_sequences_are_retried(
    babble: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared: list[None] = []
    clear = mx.clear_cache
    model = Failing(babble.model, lambda: _raise(KeyError("behind it")))
    backend = Watched(dataclasses.replace(babble, model=model), cleared)
    runner = FollowedRunner(backend, prompt_cache_bytes=1 << 20)
    before = list(runner.stream(make_request(babble, "z")))
    sessions = [runner.submit(make_request(babble, text)) for text in "abc"]

    def note() -> None:
        cleared.append(None)
        clear()

    while not model.held:
        monkeypatch.setattr(mx, "clear_cache", note)
        cleared.clear()
        runner.step()
    while not all(session.ended for session in sessions):
        runner.step()
    assert finished(before).usage.completion_tokens == 12
    count, kept, living = backend.noted[1]
    assert (count >= 1, kept, living) == (True, 0, [False])
    assert [layer() for layer in model.held] == [None] * len(model.held)
    # Each sequence succeeded alone, so there were too many of them, and the newest ends.
    assert [(session.error, session.tokens) for session in sessions[:2]] == [(None, 12)] * 2
    assert "Insufficient Memory" in str(sessions[2].error)


def test_a_failing_request_keeps_the_prompt_cache(babble: LoadedModel) -> None:
    class Poisoned(Failing):
        def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
            if mx.any(inputs == poison):
                raise ValueError("poisoned")
            logits: mx.array = self._model(inputs, cache=cache)
            return logits

    poison = babble.tokenizer.convert_tokens_to_ids("~")
    model = dataclasses.replace(babble, model=Poisoned(babble.model, gc.collect))
    runner = FollowedRunner(model, prompt_cache_bytes=1 << 20)
    list(runner.stream(make_request(babble, "z")))
    bad = runner.submit(make_request(babble, "~"))
    while not bad.ended:
        runner.step()
    again = runner.submit(make_request(babble, "z"))
    runner.step()
    assert bad.error is not None and again.cached_tokens == 99
    runner.close()


@pytest.mark.usefixtures("uncollected")
def test_a_load_error_does_not_keep_the_model_in_memory(tmp_path: Path) -> None:
    folder = write_chain(tmp_path / "m", BABBLE)
    held: list[weakref.ref[Any]] = []

    def fail_with_weights(_: ModelKey, __: Any) -> LoadedModel:
        model = load(folder)
        held.append(weakref.ref(model.model))
        raise RuntimeError(str(_METAL))

    async def load_it() -> Report:
        reports: asyncio.Queue[Sequence[Report]] = asyncio.Queue()
        worker = Worker(fail_with_weights, 8)
        worker.connect(reports.put_nowait)
        worker.send(Load(ModelKey("m", str(folder))))
        (report,) = await reports.get()
        worker.stop()
        return report

    report = asyncio.run(load_it())
    assert isinstance(report, LoadFailed) and "Insufficient Memory" in str(report.error)
    assert held[0]() is None
