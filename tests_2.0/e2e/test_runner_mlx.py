"""The runner on real MLX with tiny models: batches, seeds, text, faults, architectures."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm import stream_generate
from mlx_lm.utils import load as mlx_lm_load
from mlx_lm.utils import load_model
from support.architectures import ARCHITECTURES
from support.following import Followed, FollowedRunner, finished, logprobs, text
from support.tiny_models import BABBLE, CHATML, LETTERS, NEWLINE, SPACE, say, write_adapter, write_chain, write_random

from mlxk2.errors import (
    InsufficientMemoryError,
    ModelError,
    ModelNotFoundError,
    ModelNotRunnableError,
    ModelUnhealthyError,
    ValidationError,
)
from mlxk2.runner.events import Finished, PromptProgress
from mlxk2.runner.memory import Device
from mlxk2.runner.mlx.decoding import Decoding
from mlxk2.runner.mlx.loader import LoadedModel, load
from mlxk2.runner.prompt.prompter import Message, Prompter
from mlxk2.runner.request import GenerationRequest, Sampling
from mlxk2.runner.runner import MLXRunner

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def babble(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Return a model that writes random letters without end."""
    return load(write_chain(tmp_path_factory.mktemp("models") / "babble", BABBLE))


def encode(model: LoadedModel, text: str) -> tuple[int, ...]:
    """Return the prompt for a user's message."""
    return prompter(model).chat([{"role": "user", "content": text}]).tokens


def prompter(model: LoadedModel) -> Prompter:
    """Return the prompter of a model."""
    return Prompter(model.tokenizer, model.vocabulary)


def answer(model: LoadedModel, **options: Any) -> tuple[str, Finished]:
    """Return the text of the answer to one prompt and its last event."""
    prompt = prompter(model).chat([{"role": "user", "content": "hello"}])
    events = list(MLXRunner(model).stream(GenerationRequest(prompt.tokens, thinking=prompt.thinking, **options)))
    return text(events), finished(events)


def together(runner: FollowedRunner, sessions: list[Followed]) -> list[str]:
    """Return the texts of sequences that run in one batch."""
    runner.finish(sessions)
    return [session.text for session in sessions]


def test_a_seed_gives_the_same_text_alone_and_in_a_batch(babble: LoadedModel) -> None:
    asked = [
        GenerationRequest(encode(babble, "x" * length), 40, Sampling(temperature=1.0, seed=seed, top_p=0.9))
        for seed, length in ((1, 3), (2, 30), (1, 3), (3, 90))
    ]
    alone = [text(MLXRunner(babble).stream(request), None) for request in asked]
    runner = FollowedRunner(babble)
    unseeded = runner.submit(GenerationRequest(encode(babble, "other"), 60, Sampling(temperature=1.0)))
    runner.step()
    assert together(runner, [*map(runner.submit, asked), unseeded])[:4] == alone
    assert alone[0] == alone[2]
    assert len(set(alone)) == 3


@pytest.mark.parametrize("top_p", [0.0, 1e-40, 1e-300])
def test_a_tiny_top_p_gives_the_likeliest_token(babble: LoadedModel, top_p: float) -> None:
    greedy, narrow = Sampling(temperature=0.0), Sampling(temperature=1.0, top_p=top_p)
    prompt = encode(babble, "hello")
    runner = FollowedRunner(babble)
    first, second = together(runner, [runner.submit(GenerationRequest(prompt, 20, one)) for one in (greedy, narrow)])
    assert first == second


def test_without_a_seed_texts_differ(babble: LoadedModel) -> None:
    assert answer(babble, max_tokens=30)[0] != answer(babble, max_tokens=30)[0]


def test_every_sequence_of_a_batch_keeps_its_own_limits(babble: LoadedModel) -> None:
    runner = FollowedRunner(babble)
    prompt = encode(babble, "hello")
    only_a = tuple((token, -100.0) for token in babble.tokenizer.encode(LETTERS[1:]))
    sessions = [
        runner.submit(GenerationRequest(prompt, 5, Sampling(seed=1))),
        runner.submit(GenerationRequest(prompt, 9, Sampling(logit_bias=only_a))),
        runner.submit(GenerationRequest(prompt, 40, Sampling(logit_bias=only_a), stop=("aaa",))),
        runner.submit(GenerationRequest(prompt, 40, Sampling(presence_penalty=20, seed=5))),
    ]
    texts = together(runner, sessions)
    assert len(texts[0]) == 5
    assert texts[1:3] == ["a" * 9, ""]
    # Every letter comes once before any letter comes again.
    assert set(texts[3][:26]) == set(LETTERS)
    assert [session.tokens for session in sessions] == [5, 9, 3, 40]


@pytest.mark.parametrize(
    ("counts", "limits", "is_under_way"),
    [
        ([], [], False),
        ([0], [9], False),
        ([1], [9], True),
        ([7], [9], True),
        ([8], [9], False),
        ([0, 8], [9, 9], False),
        ([0, 8, 1], [9, 9, 9], True),
    ],
)
def test_the_next_step_starts_early_only_if_a_sequence_needs_it(
    counts: list[int], limits: list[int], is_under_way: bool
) -> None:
    batch = Decoding.empty(None, min)
    batch._num_tokens, batch.max_tokens = counts, limits
    assert batch._is_under_way() is is_under_way


def test_a_frequency_penalty_counts_the_answer_but_not_the_prompt(babble: LoadedModel) -> None:
    sampling = Sampling(frequency_penalty=5, temperature=0)
    prompt = encode(babble, "aaaaaaaaaa")
    said = text(MLXRunner(babble).stream(GenerationRequest(prompt, 78, sampling)), None)
    assert said[0] == "a"
    assert {letter: said.count(letter) for letter in LETTERS} == dict.fromkeys(LETTERS, 3)


@pytest.mark.parametrize("name", ["llama", "chunked attention"])
def test_logprobs_belong_to_the_chosen_tokens(name: str, tmp_path: Path) -> None:
    model = load(write_random(tmp_path / "m", ARCHITECTURES[name]))
    asked = GenerationRequest(encode(model, "hello"), 12, Sampling(seed=1), likeliest_count=5)
    chunks = list(MLXRunner(model).stream(asked))
    entries = logprobs(chunks)
    assert len(entries) == finished(chunks).usage.completion_tokens == 12
    for entry in entries:
        assert len(entry.top) == 5
        assert [value for _, value in entry.top] == sorted((value for _, value in entry.top), reverse=True)
        assert entry.logprob <= entry.top[0][1] < 0
        assert entry.logprob == dict(entry.top).get(entry.token, entry.logprob)
    first = model.model(mx.array([asked.prompt]))[0, -1]
    assert entries[0].logprob == pytest.approx((first - mx.logsumexp(first))[entries[0].token].item(), abs=1e-4)


def test_each_sequence_of_a_batch_reports_the_logprobs_it_was_asked_for(babble: LoadedModel) -> None:
    prompt = encode(babble, "hello")
    asked = [GenerationRequest(prompt, 6, Sampling(seed=1), likeliest_count=count) for count in (0, None, 3, 20)]
    runner = FollowedRunner(babble)
    sessions = [runner.submit(request) for request in asked]
    runner.finish(sessions)
    for request, session in zip(asked, sessions, strict=True):
        beside, alone = session.logprobs, logprobs(MLXRunner(babble).stream(request))
        assert [entry.token for entry in beside] == [entry.token for entry in alone]
        assert len(beside) == (0 if request.likeliest_count is None else 6)
        for one, other in zip(beside, alone, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [value for _, value in one.top] == pytest.approx([value for _, value in other.top], abs=1e-4)
            assert len(one.top) == request.likeliest_count


def test_greedy_text_equals_that_of_mlx_lm(tmp_path: Path) -> None:
    folder = write_random(tmp_path / "m", ARCHITECTURES["llama"])
    mine = load(folder)
    prompt = encode(mine, "hello")
    said = text(MLXRunner(mine).stream(GenerationRequest(prompt, 60, Sampling(temperature=0))), None)
    model, tokenizer = mlx_lm_load(str(folder))
    theirs = "".join(r.text for r in stream_generate(model, tokenizer, list(prompt), max_tokens=60))
    assert said == theirs.rstrip("\ufffd")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_writes_the_same_text_alone_and_in_a_batch(name: str, tmp_path: Path) -> None:
    model = load(write_random(tmp_path / "m", ARCHITECTURES[name]))
    asked = [
        GenerationRequest(encode(model, text), 24, Sampling(temperature=0.8, seed=number))
        for number, text in enumerate(("hi", "a longer prompt, past any window of attention", "third"))
    ]
    alone = [text(MLXRunner(model).stream(request), None) for request in asked]
    runner = FollowedRunner(model)
    assert together(runner, [runner.submit(request) for request in asked]) == alone


def test_a_cancelled_sequence_does_not_affect_the_others(babble: LoadedModel) -> None:
    runner = FollowedRunner(babble)
    asked = GenerationRequest(encode(babble, "hello"), 20, Sampling(seed=1))
    expected = text(runner.stream(asked), None)
    kept, cancelled = runner.submit(asked), runner.submit(GenerationRequest(asked.prompt, 500, Sampling()))
    waiting = runner.submit(GenerationRequest(asked.prompt, 500, Sampling()))
    runner.cancel(waiting)
    for _ in range(3):
        runner.step()
    runner.cancel(cancelled)
    assert together(runner, [kept]) == [expected]
    assert runner.step() == []


@pytest.mark.parametrize("plain", [False, True])
def test_a_stop_string_completed_at_the_token_limit_gives_reason_stop(plain: bool, tmp_path: Path) -> None:
    # The detokenizer holds back a single space until the next token or the end.
    model = load(write_chain(tmp_path / "m", say("a", SPACE, "b")))
    asked = GenerationRequest(encode(model, "hello"), 2, Sampling(temperature=0), ("a ",), plain=plain)
    chunks = list(MLXRunner(model).stream(asked))
    assert (text(chunks, None), finished(chunks).reason) == ("", "stop")


def test_an_unused_token_id_has_no_bytes(tmp_path: Path) -> None:
    folder = write_random(tmp_path / "m", ARCHITECTURES["llama"])
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    letter, gap = vocabulary["a"], vocabulary.pop("b")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    model = load(folder)
    likely = Sampling(temperature=0, logit_bias=((letter, 100.0), (gap, 90.0)))
    (first,) = logprobs(MLXRunner(model).stream(GenerationRequest((1, 2), 1, likely, likeliest_count=2)))
    assert [token for token, _ in first.top] == [letter, gap]
    assert [model.vocabulary.bytes_of(token) for token in (letter, gap)] == [b"a", b""]


def test_cancelling_an_incomplete_character_does_not_affect_the_others(tmp_path: Path) -> None:
    # The detokenizer waits for the rest of this character; mlx-lm's own detokenizer fails at the end of such a text.
    endless = {NEWLINE: ["\ufffd"], "\ufffd": ["\ufffd"], "x": ["y"], "y": ["z"]}
    model = load(write_chain(tmp_path / "m", endless))
    runner = FollowedRunner(model)
    prompts = [prompter(model).completion(text).tokens for text in ("\n", "x")]
    broken, sound = (runner.submit(GenerationRequest(prompt, 9)) for prompt in prompts)
    while not broken.tokens:
        runner.step()
    (last,) = runner.cancel(broken)
    assert isinstance(last, Finished) and last.reason == "interrupted"
    assert together(runner, [sound])[0].endswith("z")


def test_stop_strings_reasoning_and_emoji_work_on_a_real_tokenizer(tmp_path: Path) -> None:
    emoji = ("ð", "Ł", "ĺ", "Ģ")
    chain = say("<think>", NEWLINE + "x", "Hm", "</think>", NEWLINE * 2, "Par", "is", *emoji, "!", "Ġmore")
    model = load(write_chain(tmp_path / "m", chain))
    assert answer(model)[0] == "Paris😀! more"
    assert answer(model, stop=("s😀",))[0] == "Pari"
    assert answer(model, stop=("! m",))[0] == "Paris😀"
    assert answer(model, max_tokens=9)[0] == "Paris"
    assert answer(model, max_tokens=9)[1].reason == "length"


def test_a_chat_template_may_open_the_reasoning(tmp_path: Path) -> None:
    template = CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif")
    chain = say("Hm", "</think>", NEWLINE * 2, "Paris", after="<think>")
    model = load(write_chain(tmp_path / "m", chain, template=template))
    assert prompter(model).chat([{"role": "user", "content": "hello"}]).thinking
    assert answer(model)[0] == "Paris"


def test_harmony_channels_work_on_a_real_tokenizer(tmp_path: Path) -> None:
    marks = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
    template = CHATML.replace("<|im_start|>assistant\n{% endif", "<|start|>assistant{% endif")
    said = {
        "t": ["<|channel|>"],
        "<|channel|>": ["analysis"],
        "analysis": ["<|message|>"],
        "<|message|>": ["Hm"],
        "Hm": ["<|end|>"],
        "<|end|>": ["<|start|>"],
        "<|start|>": ["<|return|>"],
    }
    model = load(write_chain(tmp_path / "m", said, template=template, special=marks))
    chunks = list(MLXRunner(model).stream(GenerationRequest(encode(model, "hello"), 7)))
    assert (text(chunks, "reasoning"), text(chunks)) == ("Hm", "")


class Faulty:
    """A model that fails at a given token, or with more sequences than it can hold."""

    def __init__(self, model: Any, poison: int = 10**6, most_rows: int = 100) -> None:
        self._model, self._poison, self._most_rows = model, poison, most_rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        if inputs.shape[0] > self._most_rows:
            raise RuntimeError("no room")
        if mx.any(inputs == self._poison):
            raise ValueError("poisoned")
        logits: mx.array = self._model(inputs, cache=cache)
        return logits


def test_a_fault_of_one_sequence_leaves_the_text_of_the_others(babble: LoadedModel) -> None:
    poison = babble.tokenizer.get_vocab()["~"]
    model = dataclasses.replace(babble, model=Faulty(babble.model, poison))
    asked = [
        GenerationRequest(encode(babble, "x" * number), 20 + number, Sampling(temperature=number % 3, seed=number))
        for number in range(1, 8)
    ]
    alone = [text(MLXRunner(babble).stream(request), None) for request in asked]
    # One sequence fails at the first token of its answer, one at its prompt.
    sure = Sampling(logit_bias=((poison, 100.0),), seed=1)
    runner = FollowedRunner(model, prompt_cache_bytes=1 << 20)
    sessions = [runner.submit(request) for request in asked]
    for _ in range(9):
        runner.step()
    bad = [runner.submit(GenerationRequest(encode(babble, "x"), 30, sure))]
    bad.append(runner.submit(GenerationRequest(encode(babble, "x~"), 30)))
    assert together(runner, [*sessions, *bad])[:7] == alone
    assert [str(session.error) for session in bad] == ["Generation failed: poisoned"] * 2
    assert all(session.error is None for session in sessions)
    assert text(runner.stream(asked[0]), None) == alone[0]


def test_a_batch_that_is_too_large_ends_the_newest_sequences(babble: LoadedModel) -> None:
    runner = FollowedRunner(dataclasses.replace(babble, model=Faulty(babble.model, most_rows=2)))
    asked = GenerationRequest(encode(babble, "hello"), 20, Sampling(seed=1))
    sessions = [runner.submit(asked) for _ in range(4)]
    texts = together(runner, sessions)
    assert [len(text) for text in texts[:2]] == [20, 20]
    assert [session.error is None for session in sessions] == [True, True, False, False]


def test_a_failing_sampler_fails_only_its_own_request(babble: LoadedModel) -> None:
    runner = FollowedRunner(babble)
    prompt = encode(babble, "hello")

    class Broken(Sampling):
        """Parameters that pass every check and then can't be used."""

        @property
        def greedy(self) -> bool:
            return False

    broken = Broken(seed=1)
    object.__setattr__(broken, "top_p", 0.5)
    object.__setattr__(broken, "min_p", "no number")
    good = runner.submit(GenerationRequest(prompt, 30, Sampling(seed=1)))
    runner.step()
    bad = runner.submit(GenerationRequest(prompt, 30, broken))
    together(runner, [good, bad])
    assert isinstance(bad.error, ModelError)
    assert (good.error, good.tokens) == (None, 30)


def test_a_long_prompt_reports_progress_and_can_be_cancelled(tmp_path: Path) -> None:
    model = load(write_chain(tmp_path / "m", BABBLE, context=20000))
    runner = FollowedRunner(model)
    session = runner.submit(GenerationRequest(encode(model, "x" * 9000), 5))
    (progress,) = [event for _, event in runner.step()]
    assert isinstance(progress, PromptProgress) and 0 < progress.done < progress.total == len(session.request.prompt)
    (last,) = runner.cancel(session)
    assert isinstance(last, Finished) and last.reason == "interrupted"
    assert (last.timings.read_tokens, last.timings.later_tokens) == (progress.done, 0)
    assert last.timings.reading_seconds > 0


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["{a}", "{b}"], "Paris"),
        ("{b}", "Paris"),
        (["{b}", -1, 10**6, 10**30], "Paris"),
        ("{a}", "ParisOver more"),
        ([], "ParisOver more"),
        (None, "ParisOver more"),
        (10**6, "ParisOver more"),
    ],
)
def test_end_tokens_come_from_both_config_files(tmp_path: Path, named: Any, said: str) -> None:
    folder = write_chain(tmp_path / "m", say("Par", "is", "Over", "Ġmore"))
    tokens = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    a, b = json.loads((folder / "config.json").read_text())["eos_token_id"], tokens["Over"]
    numbers = json.loads(json.dumps(named).replace('"{a}"', str(a)).replace('"{b}"', str(b)))
    edit(folder, "config.json", {"eos_token_id": numbers})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": a}))
    written, last = answer(load(folder))
    assert (written, last.reason) == (said, "stop")
    assert last.usage.completion_tokens == (3 if said == "Paris" else 5)


def test_prompts_have_one_bos_token_and_keep_end_tokens_of_the_user(tmp_path: Path) -> None:
    model = load(write_chain(tmp_path / "m", BABBLE, special=("<s>",), config={"bos_token": "<s>"}))
    bos = model.tokenizer.convert_tokens_to_ids("<s>")
    assert prompter(model).completion("<s>hi").tokens.count(bos) == 1
    assert prompter(model).completion("hi").tokens[-2:] == tuple(model.tokenizer.encode("hi", add_special_tokens=False))
    (end,) = model.tokenizer.eos_token_ids
    turn = "hi" + model.tokenizer.decode([end])
    # The user's text may contain the end token; the prompt keeps it.
    assert prompter(model).completion(turn).tokens[-1] == end
    plain = load(write_chain(tmp_path / "plain", BABBLE, template=None))
    messages: list[Message] = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    assert plain.tokenizer.decode(prompter(plain).chat(messages).tokens) == "be\n\nhi"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ 'x' * 10 ** 20 }}",
        "{{ 1 | xmlattr }}",
    ],
)
def test_a_failing_chat_template_is_a_validation_error(tmp_path: Path, template: str) -> None:
    model = load(write_chain(tmp_path / "m", BABBLE, template=template))
    with pytest.raises(ValidationError, match=r"chat template refuses this conversation: \S"):
        prompter(model).chat([{"role": "user", "content": "hi"}])


def test_the_message_of_raise_exception_is_reported(tmp_path: Path) -> None:
    template = "{{ raise_exception('Conversation roles must alternate') }}"
    model = load(write_chain(tmp_path / "m", BABBLE, template=template))
    with pytest.raises(ValidationError, match="roles must alternate"):
        encode(model, "hello")


# Loading


def edit(folder: Path, name: str, change: Mapping[str, Any]) -> Path:
    """Change keys of a JSON file of a model."""
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **change}))
    return folder


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """Return a small sound model that a test can damage."""
    return write_chain(tmp_path / "sound", BABBLE)


def test_python_code_of_a_model_is_never_run(model_folder: Path) -> None:
    trap = model_folder / "trap.py"
    trap.write_text(f"open({str(model_folder / 'sprung')!r}, 'w')\nModel = ModelArgs = Tok = Config = object\n")
    auto = {"auto_map": {"AutoTokenizer": ["trap.Tok", "trap.Tok"], "AutoConfig": "trap.Config"}}
    edit(model_folder, "tokenizer_config.json", {**auto, "tokenizer_class": "TrapTokenizer"})
    edit(model_folder, "config.json", auto)
    assert len(answer(load(model_folder), max_tokens=5)[0]) == 5
    edit(model_folder, "config.json", {"model_file": "trap.py"})
    with pytest.raises(ModelNotRunnableError, match="model_file"):
        load(model_folder)
    assert not (model_folder / "sprung").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_damaged_files_are_reported_in_one_sentence(model_folder: Path, name: str) -> None:
    (model_folder / name).write_bytes(b'{"broken": [')
    with pytest.raises((ModelUnhealthyError, ModelNotRunnableError)) as caught:
        load(model_folder)
    assert "sound" in caught.value.message
    assert str(model_folder.parent) not in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 1000)], ids=["gone", "truncated"])
def test_weights_damaged_after_the_check_are_reported(model_folder: Path, damage: Callable[[Path], None]) -> None:
    damage(model_folder / "model.safetensors")
    with pytest.raises(ModelUnhealthyError, match="sound is damaged: "):
        load(model_folder)


def test_weights_that_do_not_fit_the_config_are_an_error(model_folder: Path) -> None:
    edit(model_folder, "config.json", {"num_hidden_layers": 3})
    with pytest.raises(ModelNotRunnableError, match="sound"):
        load(model_folder)


def test_weights_larger_than_the_memory_are_an_error_with_both_sizes(model_folder: Path) -> None:
    needed = (model_folder / "model.safetensors").stat().st_size
    with pytest.raises(InsufficientMemoryError, match=r"need .*MB .* only 2.0KB"):
        load(model_folder, device=Device(memory=2000))
    assert load(model_folder, device=Device(memory=needed))


def test_half_precision_becomes_float32_on_the_cpu(tmp_path: Path) -> None:
    folder = write_chain(tmp_path / "half", BABBLE)
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    half = {name: array.astype(mx.bfloat16) for name, array in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), half, metadata={"format": "mlx"})
    model = load(folder)
    expected = mx.float32 if mx.default_device() == mx.cpu else mx.bfloat16
    assert model.model.model.embed_tokens.weight.dtype == expected
    assert len(answer(model, max_tokens=5)[0]) == 5


def test_quantized_weights_stay_packed_and_their_scales_are_widened_on_the_cpu(tmp_path: Path) -> None:
    folder = write_random(tmp_path / "m", ARCHITECTURES["llama"])
    model = load(folder).model
    nn.quantize(model, group_size=32, bits=4)
    model.set_dtype(mx.bfloat16)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    edit(folder, "config.json", {"quantization": {"group_size": 32, "bits": 4}})
    loaded = load(folder)
    layer = loaded.model.model.layers[0].mlp.up_proj
    assert layer.weight.dtype == mx.uint32
    assert layer.scales.dtype == (mx.float32 if mx.default_device() == mx.cpu else mx.bfloat16)
    assert answer(loaded, max_tokens=4)[1].usage.completion_tokens > 0


def test_an_adapter_is_applied_to_the_model(tmp_path: Path) -> None:
    folder = write_chain(tmp_path / "m", say("Paris"))
    plain = load(folder)
    loaded = load(folder, write_adapter(tmp_path / "adapter", plain.vocabulary_size))
    assert mx.all(loaded.model.model.layers[0].mlp.up_proj.lora_b == 1)
    assert not hasattr(plain.model.model.layers[0].mlp.up_proj, "lora_b")
    assert answer(loaded)[0] == "Paris"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "it has no adapter_config.json"),
        ({"adapter_config.json": "{}"}, "it has no adapters.safetensors"),
        ({"adapter_config.json": "[]", "adapters.safetensors": ""}, "is not a JSON object"),
        ({"adapter_config.json": "[", "adapters.safetensors": ""}, r"is not valid JSON \(Expecting value"),
    ],
)
def test_a_folder_without_an_adapter_is_an_error(
    model_folder: Path, tmp_path: Path, files: dict[str, str], reason: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValidationError, match=reason):
        load(model_folder, tmp_path)


def test_a_removed_model_is_reported_as_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="org/m no longer exists"):
        load(tmp_path / "gone", name="org/m")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelUnhealthyError, match="config.json of org/m can't be read .No such file or directory"):
        load(tmp_path / "empty", name="org/m")


@pytest.mark.parametrize("settings", ["{}", '{"num_layers": 1, "lora_parameters": {"rank": 2, "scale": 1}}'])
def test_the_error_for_an_unloadable_adapter_names_the_adapter(
    model_folder: Path, tmp_path: Path, settings: str
) -> None:
    adapter = tmp_path / "mine"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(settings)
    (adapter / "adapters.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValidationError, match=r"The adapter .*mine does not fit .+: \S"):
        load(model_folder, adapter)


def test_for_batches_on_the_cpu_matrices_are_column_major_with_equal_results(tmp_path: Path) -> None:
    folder = write_random(tmp_path / "model", ARCHITECTURES["llama"])
    model = load(folder, for_batches=True).model
    plain, _ = load_model(folder)
    matrices = [module.weight for _, module in model.named_modules() if isinstance(module, nn.Linear)]
    # The arrays are column-major, which numpy shows as Fortran order.
    assert matrices and all(np.array(matrix, copy=False).flags.f_contiguous for matrix in matrices)
    tokens = mx.arange(12)[None]
    assert mx.allclose(model(tokens), plain(tokens), atol=1e-4)
    assert {name: array.shape for name, array in tree_flatten(model.parameters())} == {
        name: array.shape for name, array in tree_flatten(plain.parameters())
    }
