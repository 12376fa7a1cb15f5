"""The use of a Mac's GPU, with a simulated device: MLX is real except for its description of the device."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import Program
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from support.architectures import ARCHITECTURES
from support.conformance import error_of
from support.following import FollowedRunner, finished
from support.tiny_models import BABBLE, write_chain, write_random

from mlxk2.chat.assistant import Assistant
from mlxk2.errors import InsufficientMemoryError, ModelNotRunnableError
from mlxk2.runner.memory import Device, MemoryChoice
from mlxk2.runner.mlx.decoding import Decoding
from mlxk2.runner.mlx.loader import LoadedModel, load
from mlxk2.runner.mlx.prefill import prefill_budget
from mlxk2.runner.prompt.confined import Starter
from mlxk2.runner.prompt.prompter import Message
from mlxk2.runner.request import GenerationRequest, Sampling
from mlxk2.runner.runner import MLXRunner

pytestmark = pytest.mark.e2e

GB = 10**9
MAC = {"memory_size": 64 * GB, "max_recommended_working_set_size": 48 * GB, "resource_limit": 499_000}


class Metal:
    """The simulated device; `events` records changes of the wired limit and when weights are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.info: dict[str, int] = dict(MAC)
        self.wired = 0
        self.events: list[int | str] = []
        self._eval: Callable[..., None] = mx.eval
        monkeypatch.setattr(mx, "device_info", lambda: self.info)
        monkeypatch.setattr(mx, "set_wired_limit", self._set)
        monkeypatch.setattr(mx, "eval", self._read)

    def _set(self, limit: int) -> int:
        if limit > self.info["max_recommended_working_set_size"]:
            raise ValueError("[metal::set_wired_limit] Setting a wired limit larger than the maximum is not allowed.")
        before, self.wired = self.wired, limit
        self.events.append(limit)
        return before

    def _read(self, *arrays: Any) -> None:
        self.events.append("eval")
        self._eval(*arrays)


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> Metal:
    """Return a Mac with 64 GB."""
    return Metal(monkeypatch)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report the default device as a GPU; MLX still computes on the real one."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that writes random letters without end."""
    return write_chain(tmp_path_factory.mktemp("models") / "babble", BABBLE, context=30_000)


def size_of(model: LoadedModel) -> int:
    """Return the bytes of the weights."""
    return sum(array.nbytes for _, array in tree_flatten(model.model.parameters()))


def request(count: int = 5, max_tokens: int = 6) -> GenerationRequest:
    """Return a seeded request."""
    return GenerationRequest((3,) * count, max_tokens, Sampling(seed=1))


# ------------------------------------------------------------------------------------------------------- wired limit


@pytest.mark.parametrize("name", ["llama", "chunked attention"])
def test_the_wired_limit_is_set_once_before_the_weights_are_loaded(name: str, metal: Metal, tmp_path: Path) -> None:
    model = load(write_random(tmp_path / "m", ARCHITECTURES[name]), memory=MemoryChoice(prompt_cache=3 * GB))
    wanted = size_of(model) + 7 * GB
    assert metal.events[:3] == [0, wanted, "eval"]
    runner = MLXRunner(model)
    list(runner.stream(request()))
    runner.submit(request())
    runner.step()
    assert metal.wired == wanted
    runner.close()
    assert [event for event in metal.events if event != "eval"] == [0, wanted]


@pytest.mark.parametrize("name", ["llama", "chunked attention"])
def test_a_metal_error_while_generating_keeps_the_limit_and_the_next_answer(
    name: str, metal: Metal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("[METAL] Command buffer execution failed")

    model = load(write_random(tmp_path / "m", ARCHITECTURES[name]))
    wanted = metal.wired
    runner = MLXRunner(model)
    runner.submit(request())
    runner.step()
    with monkeypatch.context() as patch:
        patch.setattr(mx, "synchronize", fail)
        runner.close()
    assert finished(list(runner.stream(request()))).reason in ("stop", "length")
    assert metal.wired == wanted > 0
    assert [event for event in metal.events if event != "eval"] == [0, wanted]


@pytest.mark.parametrize(
    ("chosen", "working_set", "expected"),
    [
        (0, 48 * GB, []),
        (5 * GB, 48 * GB, [0, 5 * GB]),
        (50 * GB, 48 * GB, [0, 48 * GB]),
        (None, GB, [0, GB]),
    ],
)
def test_the_wired_limit_is_the_users_choice_capped_by_metal(
    chosen: int | None,
    working_set: int,
    expected: list[int],
    metal: Metal,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    metal.info["max_recommended_working_set_size"] = working_set
    list(MLXRunner(load(folder, memory=MemoryChoice(wired=chosen))).stream(request()))
    assert [event for event in metal.events if event != "eval"] == expected
    assert [record.message for record in caplog.records] == (
        ["MLXK2_WIRED_LIMIT is 50.0GB, but the GPU should use at most 48.0GB; so only that much is wired."]
        if chosen == 50 * GB
        else []
    )


def test_replacing_a_model_sets_a_new_wired_limit(metal: Metal, folder: Path, tmp_path: Path) -> None:
    load(folder)
    first = metal.wired
    load(write_random(tmp_path / "m", ARCHITECTURES["llama"]), unload=lambda: metal.events.append("unload"))
    unloaded = metal.events.index("unload")
    assert metal.events[unloaded + 1 : unloaded + 4] == [0, metal.wired, "eval"]
    assert 0 < metal.wired != first


def test_a_failed_load_resets_the_wired_limit(metal: Metal, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("[metal::malloc] Unable to allocate")

    monkeypatch.setattr(mx, "eval", fail)
    with pytest.raises(ModelNotRunnableError, match="Unable to allocate"):
        load(folder)
    assert metal.wired == 0 and metal.events[1] != 0


@pytest.mark.parametrize("given", ["much", "-1", "8 apples", "1" * 30])
@pytest.mark.parametrize("words", [("run", "demo", "hi"), ("serve", "--model", "demo")])
def test_an_invalid_wired_limit_is_an_error_that_names_the_variable(
    given: str, words: tuple[str, ...], mlxk2: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXK2_WIRED_LIMIT", given)
    error = error_of(mlxk2(*words, "--json"), "server" if words[0] == "serve" else "run")
    assert error["type"] == "ValidationError"
    assert error["message"].startswith("MLXK2_WIRED_LIMIT must be a size such as 8GB, or 0 to wire nothing, not ")


@pytest.mark.parametrize(("given", "limits"), [("0", []), ("5.5gb", [0, 5_500_000_000]), ("", None)])
def test_the_wired_limit_is_read_from_the_environment(
    given: str, limits: list[int] | None, metal: Metal, mlxk2: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXK2_WIRED_LIMIT", given)
    assert mlxk2("run", "demo", "Hello", "--json").code == 0
    seen = [event for event in metal.events if event != "eval"]
    # A single answer fills no prompt cache.
    if limits is not None:
        assert seen == limits
    else:
        assert isinstance(seen[1], int) and 4 * GB < seen[1] < 4.1 * GB


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("info", "weights", "said"),
    [
        ((64, 48), 43.0, None),
        ((64, 48), 43.5, "`sudo sysctl iogpu.wired_limit_mb=50332` lets it use more until the next restart; or choose"),
        ((64, 48), 60.0, "`sudo sysctl iogpu.wired_limit_mb=57220` lets it use more until the next restart; or choose"),
        ((64, 60), 58.0, "fail. Choose a smaller"),
        ((64, None), 63.0, None),
    ],
)
def test_weights_near_the_working_set_log_a_warning_with_advice(
    info: tuple[int, int | None], weights: float, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    memory, working_set = info
    Device(memory * GB, working_set * GB if working_set else None).plan("org/m", int(weights * GB))
    if said is None:
        assert not caplog.records
    else:
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert f"The weights of org/m need {weights}GB of memory" in record.message
        assert f"at most {working_set}.0GB" in record.message and said in record.message


def test_weights_larger_than_the_memory_are_refused_before_loading(metal: Metal, folder: Path) -> None:
    metal.info |= {"memory_size": 20_000, "max_recommended_working_set_size": 15_000}
    with pytest.raises(InsufficientMemoryError, match=r"need .*MB of .* only 20.0KB \(15.0KB of it for the GPU"):
        load(folder)
    assert metal.events == []


@pytest.mark.parametrize(
    ("device", "weights", "expected"),
    [
        (Device(64 * GB, 48 * GB), 1 * GB, 8 * GB),
        (Device(64 * GB, 50 * GB), 35 * GB, 5 * GB),
        (Device(64 * GB, 48 * GB), 44 * GB, 0),
        (Device(16 * GB), 1 * GB, 2 * GB),
        (Device(16 * GB), 14 * GB, GB // 5),
    ],
)
def test_the_prompt_cache_uses_memory_that_the_weights_leave(device: Device, weights: int, expected: int) -> None:
    assert device.plan("org/m", weights).prompt_cache == pytest.approx(expected, abs=10)


@pytest.mark.usefixtures("metal")
def test_a_loaded_model_has_the_limits_of_its_prompt_cache(folder: Path) -> None:
    model = load(folder)
    assert (model.prompt_cache_bytes, model.max_cached_arrays) == (8 * GB, 499_000 // 4)
    assert load(folder, memory=MemoryChoice(prompt_cache=5)).prompt_cache_bytes == 5


def test_an_unreachable_gpu_is_an_error_with_its_cause(mlxk2: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("[metal::Device] No Metal device available.")

    monkeypatch.setattr(mx, "device_info", fail)
    error = error_of(mlxk2("run", "demo", "Hello", "--json"), "run")
    assert error["type"] == "ModelNotRunnableError"
    assert error["message"] == "MLX can't use a GPU here: [metal::Device] No Metal device available."


# -------------------------------------------------------------------------------------------------------------- speed


class Counting:
    """A model that records how many tokens it gets in each call."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.lengths: list[int] = []

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        """Compute tokens [rows, length]."""
        self.lengths.append(inputs.shape[1])
        answer: mx.array = self._model(inputs, cache=cache)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def load_with_counter(folder: Path) -> tuple[LoadedModel, Counting]:
    """Return a model of this folder and its counter."""
    model = load(folder)
    counting = Counting(model.model)
    return dataclasses.replace(model, model=counting), counting


@pytest.mark.usefixtures("on_gpu")
def test_a_gpu_reads_prompts_in_large_pieces_unless_others_generate(folder: Path) -> None:
    model, counting = load_with_counter(folder)
    letters = tuple(model.tokenizer.encode("x" * 5000))
    runner = FollowedRunner(model)
    alone = runner.submit(GenerationRequest(letters, 20_000))
    while not alone.tokens:
        runner.step()
    assert counting.lengths[:3] == [2048, 2048, 903]
    counting.lengths.clear()
    beside = runner.submit(GenerationRequest(letters[:1500], 1))
    while not beside.tokens:
        runner.step()
    assert [length for length in counting.lengths if length > 1] == [512, 512, 475]
    runner.close()


@pytest.mark.parametrize(
    ("others", "longest", "expected"),
    [
        (False, 100, 2048),
        (True, 100, 512),
        (False, 16384, 2048),
        (False, 16385, 512),
    ],
)
def test_pieces_of_a_prompt_are_larger_on_a_gpu_than_on_a_cpu(
    others: bool, longest: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prefill_budget(others_decode=others, longest=longest) == 256
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert prefill_budget(others_decode=others, longest=longest) == expected


@pytest.mark.parametrize(
    ("counts", "limits", "is_under_way"),
    [
        ([], [], False),
        ([0], [9], True),
        ([0], [1], False),
        ([0], [2], True),
        ([8], [9], False),
        ([0, 8], [1, 9], False),
    ],
)
@pytest.mark.usefixtures("on_gpu")
def test_a_gpu_starts_the_second_token_before_the_first_is_read(
    counts: list[int], limits: list[int], is_under_way: bool
) -> None:
    batch = Decoding.empty(None, min)
    batch._num_tokens, batch.max_tokens = counts, limits
    assert batch._is_under_way() is is_under_way


@pytest.mark.parametrize("name", ["llama", "chunked attention"])
def test_a_gpu_is_warmed_up_with_a_prompt_and_a_token(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, counting = load_with_counter(write_random(tmp_path / "m", ARCHITECTURES[name]))
    model.warm_up()
    assert counting.lengths == []
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    model.warm_up()
    assert counting.lengths[0] == 63 and 1 in counting.lengths


@pytest.mark.usefixtures("on_gpu")
def test_errors_of_the_warm_up_are_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Counting):
        def __call__(self, *_: Any, **__: Any) -> mx.array:
            raise RuntimeError("[METAL] no such kernel")

    model = load(folder)
    dataclasses.replace(model, model=Broken(model.model)).warm_up()
    assert [record.message for record in caplog.records] == [
        "A first token could not be generated: [METAL] no such kernel"
    ]


# --------------------------------------------------------------------------------------------------------------- chat


def load_assistant(folder: Path, max_tokens: int, *, converses: bool = False) -> Assistant:
    """Return an assistant with the model in a folder."""
    return Assistant.load(
        str(folder),
        name="babble",
        adapter=None,
        use_template=True,
        sampling=Sampling(seed=1),
        max_tokens=max_tokens,
        starter=Starter(),
        context=None,
        converses=converses,
    )


def test_the_next_turn_of_a_chat_computes_only_new_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    call = llama.Model.__call__

    def count(self: llama.Model, inputs: mx.array, *rest: Any, **options: Any) -> mx.array:
        computed.append(inputs.size)
        answer: mx.array = call(self, inputs, *rest, **options)
        return answer

    monkeypatch.setattr(llama.Model, "__call__", count)
    cleared: list[None] = []
    clear = mx.clear_cache

    def note() -> None:
        cleared.append(None)
        clear()

    monkeypatch.setattr(mx, "clear_cache", note)
    chat = load_assistant(folder, max_tokens=20, converses=True)
    messages: list[Message] = [{"role": "user", "content": "x" * 500}]
    first = chat.complete(messages, lambda _: cleared.clear())
    # The thread gives the memory back after the completion.
    while not cleared:
        time.sleep(0.001)
    # The end token that the limit cut off and the tokens of the next question.
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "y"}]
    computed.clear()
    second = chat.complete(messages, lambda _: None)
    new = second.usage.prompt_tokens - first.usage.prompt_tokens - first.usage.completion_tokens
    assert 0 < new < 60
    assert sum(length for length in computed if length > 1) <= new + 1


def test_a_single_answer_fills_no_prompt_cache(folder: Path) -> None:
    chat = load_assistant(folder, max_tokens=5)
    before = mx.get_active_memory()
    chat.complete([{"role": "user", "content": "x" * 2000}], lambda _: None)
    assert mx.get_active_memory() <= before + 1000
