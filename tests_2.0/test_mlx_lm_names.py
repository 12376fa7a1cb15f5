"""The undocumented names of mlx-lm that the runner uses: when this fails, a name has moved."""

from __future__ import annotations

import inspect
import re
from codecs import BOM_UTF8
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from mlx_lm import sample_utils, tokenizer_utils, utils
from mlx_lm.models import cache

from mlxk2.runner.mlx.decoding import Decoding

# The package has a function of the same name, so the module must be imported by name.
generate = import_module("mlx_lm.generate")


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (generate.BatchGenerator, ["model", "completion_batch_size"]),
        (generate.BatchGenerator.remove, ["uids", "return_prompt_caches"]),
        (generate.PromptProcessingBatch, ["model", "uids", "caches"]),
        (generate.PromptProcessingBatch.prompt, ["tokens"]),
        (generate.PromptProcessingBatch.extract_cache, ["idx"]),
        (
            generate.GenerationBatch,
            [
                "model",
                "uids",
                "inputs",
                "prompt_cache",
                "tokens",
                "samplers",
                "fallback_sampler",
                "logits_processors",
                "stop_sequences",
                "max_tokens",
            ],
        ),
        (generate.GenerationBatch.empty, ["model", "fallback_sampler"]),
        (generate.GenerationBatch.extend, ["batch"]),
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
        (cache.can_trim_prompt_cache, ["cache"]),
        (cache.trim_prompt_cache, ["cache", "num_tokens"]),
        (sample_utils.apply_top_p, ["logprobs", "top_p"]),
        (sample_utils.apply_min_p, ["logprobs", "min_p"]),
        (sample_utils.apply_top_k, ["logprobs", "top_k"]),
        (sample_utils.make_repetition_penalty, ["penalty", "context_size"]),
        (sample_utils.make_presence_penalty, ["penalty", "context_size"]),
        (sample_utils.make_frequency_penalty, ["penalty", "context_size"]),
    ],
)
def test_functions_take_the_expected_arguments(function: Callable[..., Any], arguments: list[str]) -> None:
    assert set(arguments) <= set(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    "name",
    [
        "detokenizer",
        "eos_token_ids",
        "has_thinking",
        "think_start",
        "think_end",
        "structural_markers",
        "response_transitions",
        "response_initial_state",
    ],
)
def test_the_tokenizer_wrapper_has_the_expected_properties(name: str) -> None:
    assert isinstance(getattr(tokenizer_utils.TokenizerWrapper, name), property)


def test_a_config_with_a_byte_order_mark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(BOM_UTF8 + b'{"model_type": "llama"}')
    with pytest.raises(ValueError, match="BOM"):
        utils.load_config(tmp_path)


def test_the_responses_of_a_batch_have_the_expected_fields() -> None:
    fields = set(inspect.signature(generate.GenerationBatch.Response).parameters)
    assert {"uid", "token", "logprobs", "finish_reason", "prompt_cache", "all_tokens"} <= fields
    assert "prompt_cache" in vars(generate.PromptProcessingBatch.empty(_NoModel(), min))


def test_our_batch_step_uses_the_same_fields_as_theirs() -> None:
    ours = _fields(Decoding._step) | _fields(Decoding._process) | _fields(Decoding._report)
    ahead = _fields(Decoding._is_under_way)
    # Our batch always has one sampler for each sequence, so it needs neither of these fields.
    theirs = _fields(generate.GenerationBatch._step) - {"fallback_sampler", "uids"}
    assert ours - {"_process", "_report", "_is_under_way", "_num_tokens"} == theirs
    assert ahead <= vars(generate.GenerationBatch.empty(_NoModel(), min)).keys()
    assert isinstance(generate.BatchGenerator(_NoModel())._generation_batch, generate.GenerationBatch)


class _NoModel:
    """Enough of a model for a batch without rows."""


def _fields(method: Callable[..., Any]) -> set[str]:
    """Return the attributes of its object that a method uses."""
    return set(re.findall(r"\bself\.(\w+)", inspect.getsource(method)))
