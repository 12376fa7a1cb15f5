"""What the runner takes from mlx-lm that its documentation does not promise: when this fails, a name has moved."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
from mlx_lm import sample_utils, tokenizer_utils, utils
from mlx_lm.models import cache

# The package binds the name to a function.
generate = import_module("mlx_lm.generate")


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (
            generate.BatchGenerator.insert,
            ["prompts", "max_tokens", "samplers", "logits_processors", "stop_sequences"],
        ),
        (generate.BatchGenerator.remove, ["uids"]),
        (generate.BatchGenerator.next, []),
        (generate.StopSequences, ["stop_sequences"]),
        (generate.TextStateMachine, ["transitions"]),
        (generate.TextStateMachine.make_state, ["initial"]),
        (generate.TextStateMachine.split, ["state", "text"]),
        (generate.TextStateMachine.flush, ["state"]),
        (generate.generate_step, ["prompt", "model", "max_tokens", "sampler", "logits_processors"]),
        (utils.load_model, ["model_path", "lazy"]),
        (utils.load_tokenizer, ["model_path", "tokenizer_config_extra", "eos_token_ids"]),
        (utils.load_adapters, ["model", "adapter_path"]),
        (utils.load_config, ["model_path"]),
        (cache.make_prompt_cache, ["model"]),
        (sample_utils.apply_top_p, ["logprobs", "top_p"]),
        (sample_utils.apply_min_p, ["logprobs", "min_p"]),
        (sample_utils.apply_top_k, ["logprobs", "top_k"]),
        (sample_utils.greedy_sampler, ["logprobs"]),
        (sample_utils.make_repetition_penalty, ["penalty", "context_size"]),
        (sample_utils.make_presence_penalty, ["penalty", "context_size"]),
        (sample_utils.make_frequency_penalty, ["penalty", "context_size"]),
    ],
)
def test_functions_take_what_they_are_given(function: Callable[..., Any], arguments: list[str]) -> None:
    assert set(arguments) <= set(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    "name",
    [
        "detokenizer", "eos_token_ids", "has_thinking", "think_start", "think_end", "structural_markers",
        "response_transitions", "response_initial_state",
    ],
)  # fmt: skip
def test_the_tokenizer_wrapper_knows(name: str) -> None:
    assert isinstance(getattr(tokenizer_utils.TokenizerWrapper, name), property)


def test_the_responses_of_a_batch() -> None:
    fields = set(inspect.signature(generate.GenerationBatch.Response).parameters)
    assert {"uid", "token", "logprobs", "finish_reason"} <= fields
