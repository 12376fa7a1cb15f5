"""The number of tokens that an answer may have, and invalid values of a request."""

from __future__ import annotations

from typing import Any

import pytest
from conftest_runner import generate, request, saying
from support.following import finished
from support.layouts import CacheDir, Files, as_json, chat_model, without

from mlxk2.cache.store import Cache
from mlxk2.checkpoint.describe import context_length, length_in_config
from mlxk2.errors import ContextLengthError, ValidationError
from mlxk2.names import Repo
from mlxk2.runner.request import (
    GenerationRequest,
    Sampling,
    check_max_tokens,
    default_max_tokens,
    token_budget,
)


def read(files: Files, cache_dir: CacheDir) -> int | None:
    """Return the context length of a model with these files."""
    cache_dir.add("org/model", files)
    return context_length(Cache(str(cache_dir.path)).resolve(Repo("org/model")))


NAMES = (
    "max_position_embeddings",
    "n_positions",
    "context_length",
    "max_sequence_length",
    "max_seq_len",
    "model_max_length",
    "seq_len",
)


@pytest.mark.parametrize("key", NAMES)
def test_the_context_length_is_read_from_every_known_key(key: str) -> None:
    assert length_in_config({key: 1234}) == 1234
    assert length_in_config({"text_config": {key: 1234}}) == 1234


def test_the_outer_config_comes_before_the_inner() -> None:
    assert length_in_config({"n_positions": 10, "text_config": {"max_position_embeddings": 20}}) == 10


@pytest.mark.parametrize("value", [0, -1, True, "2048", None, 10**30, 2048.0, []])
def test_an_invalid_context_length_is_ignored(value: object) -> None:
    assert length_in_config({"max_position_embeddings": value}) is None
    assert length_in_config({"max_position_embeddings": value, "seq_len": 7}) == 7


# From published configs: the positions, their scaling, and the context that the model's card promises.
SCALED: dict[str, tuple[int, dict[str, Any], int]] = {
    "Qwen3 with YaRN": (40960, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
    "YaRN without the original": (2048, {"type": "yarn", "factor": 4}, 8192),
    "DeepSeek": (163840, {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}, 163840),
    "a YaRN of mlx-lm's": (2048, {"type": "telechat3-yarn", "factor": 4.0}, 8192),
    "linear": (4096, {"type": "linear", "factor": 4.0}, 16384),
    "dynamic": (4096, {"rope_type": "dynamic", "factor": 2.0}, 8192),
    "Llama 3.1": (131072, {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 131072),
    "Llama 3 scaled": (8192, {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 65536),
    "Phi 3": (131072, {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}, 131072),
    "Qwen2-VL": (32768, {"type": "mrope", "mrope_section": [16, 24, 24]}, 32768),
    "no scaling": (2048, {"rope_type": "default", "rope_theta": 10000.0}, 2048),
    "layers of two kinds": (131072, {"full_attention": {"rope_type": "linear", "factor": 8.0}}, 131072),
    "a factor that is a text": (2048, {"type": "linear", "factor": "8"}, 2048),
    "a factor below one": (2048, {"type": "linear", "factor": 0.5}, 2048),
    "an infinite factor": (2048, {"type": "linear", "factor": float("inf")}, 2048),
    "an absurd factor": (2048, {"type": "yarn", "factor": 1e30}, 2048),
    "a type that is a list": (2048, {"type": ["yarn"], "factor": 8.0}, 2048),
}


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(("positions", "scaling", "expected"), SCALED.values(), ids=SCALED)
def test_rope_scaling_extends_the_context(positions: int, scaling: dict[str, Any], expected: int, key: str) -> None:
    config = {"max_position_embeddings": positions, key: scaling}
    assert length_in_config(config) == expected
    assert length_in_config({"text_config": config}) == expected
    assert length_in_config({"max_position_embeddings": positions, "text_config": {key: scaling}}) == expected


def test_the_context_of_gemma_3_includes_its_scaling() -> None:
    config = {"max_position_embeddings": 131072, "rope_local_base_freq": 10000.0}
    assert length_in_config({**config, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}) == 131072


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        ({}, None),
        ({"model_max_length": 8192}, 8192),
        ({"model_max_length": 10**30}, None),
        ({"model_max_length": 1e30}, None),
        ({"model_max_length": None}, None),
    ],
)
def test_the_tokenizer_gives_the_context_if_the_config_does_not(
    cache_dir: CacheDir, tokenizer: dict[str, object], expected: int | None
) -> None:
    files = chat_model(max_position_embeddings=None) | {"tokenizer_config.json": as_json({"a": 1, **tokenizer})}
    assert read(files, cache_dir) == expected


@pytest.mark.parametrize("text", [b"{", b"[]", None])
def test_a_tokenizer_config_without_a_length_sets_no_limit(cache_dir: CacheDir, text: bytes | None) -> None:
    files = without(chat_model(max_position_embeddings=None), "tokenizer_config.json")
    assert read(files if text is None else files | {"tokenizer_config.json": text}, cache_dir) is None


def test_without_a_context_length_every_prompt_fits() -> None:
    assert token_budget(request("a" * 9000, max_tokens=7), None) == 7
    assert token_budget(request("a" * 9000), None) > 1 << 30
    assert default_max_tokens(None) == 4096


def test_the_default_limit_is_half_of_the_context() -> None:
    assert [default_max_tokens(context) for context in (1, 2, 4096)] == [1, 1, 2048]


def test_without_a_limit_an_answer_may_fill_the_context() -> None:
    assert token_budget(request("hello"), 100) == 95


def test_a_limit_is_reduced_to_the_context() -> None:
    assert token_budget(request("hello", max_tokens=1000), 100) == 95
    assert token_budget(request("hello", max_tokens=7), 100) == 7


@pytest.mark.parametrize("context", [4, 5])
def test_a_prompt_that_fills_the_context_is_an_error_with_both_lengths(context: int) -> None:
    with pytest.raises(ContextLengthError, match=rf"5 tokens.* {context} "):
        token_budget(request("hello"), context)


def test_an_answer_ends_when_the_context_is_full() -> None:
    chunks = generate(saying("a" * 50, context_length=20))
    assert (finished(chunks).usage.completion_tokens, finished(chunks).reason) == (15, "length")


@pytest.mark.parametrize("value", [0, -5, True, 2**70])
def test_an_invalid_limit_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="max_tokens"):
        check_max_tokens(value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("top_k", -1),
        ("top_k", True),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", 1e9),
        ("seed", -(2**70)),
        ("seed", 2**70),
        ("seed", 1.5),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((1, float("inf")),)),
    ],
)
def test_invalid_sampling_values_are_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=option):
        Sampling(**{option: value})


def test_an_empty_prompt_and_an_empty_stop_string_are_refused() -> None:
    with pytest.raises(ValidationError, match="prompt is empty"):
        GenerationRequest(())
    with pytest.raises(ValidationError, match="stop"):
        request(stop=("a", ""))


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1e-9}, {"top_p": 0}, {"top_k": 1}])
def test_sampling_with_a_single_choice_is_greedy(options: dict[str, Any]) -> None:
    assert Sampling(**options).is_greedy
    assert not Sampling().is_greedy
