"""How many tokens an answer may have, and which values of a request can't be right."""

from __future__ import annotations

from typing import Any

import pytest
from conftest_runner import generate, request, saying

from mlxk2.errors import ContextLengthError, ValidationError
from mlxk2.runner.params import GenerationRequest, Sampling, check_max_tokens, context_length, token_budget


@pytest.mark.parametrize(
    "key", ["max_position_embeddings", "n_positions", "context_length", "max_sequence_length", "seq_len"]
)
def test_the_context_comes_from_the_config(key: str) -> None:
    assert context_length({key: 1234}) == 1234
    assert context_length({"text_config": {key: 1234}}) == 1234


def test_the_outer_config_wins() -> None:
    assert context_length({"n_positions": 10, "text_config": {"max_position_embeddings": 20}}) == 10


@pytest.mark.parametrize("value", [0, -1, True, "2048", None, 10**30, 2048.0, []])
def test_a_context_that_is_no_number_of_tokens_is_4096(value: object) -> None:
    assert context_length({"max_position_embeddings": value}) == 4096
    assert context_length({"max_position_embeddings": value, "seq_len": 7}) == 7


def test_without_a_word_in_the_config_the_context_is_4096() -> None:
    assert context_length({}) == 4096
    assert context_length({"text_config": None}) == 4096


def test_the_default_limit_is_what_the_context_leaves() -> None:
    assert token_budget(request("hello"), 100) == 95


def test_a_limit_is_clipped_to_the_context() -> None:
    assert token_budget(request("hello", max_tokens=1000), 100) == 95
    assert token_budget(request("hello", max_tokens=7), 100) == 7


@pytest.mark.parametrize("context", [4, 5])
def test_a_prompt_that_leaves_no_room_is_an_error_with_both_numbers(context: int) -> None:
    with pytest.raises(ContextLengthError, match=rf"5 tokens.* {context} "):
        token_budget(request("hello"), context)


def test_an_answer_fills_the_context_and_no_more() -> None:
    chunks = generate(saying("a" * 50, context_length=20))
    assert (chunks[-1].tokens, chunks[-1].finish_reason) == (15, "length")


@pytest.mark.parametrize("value", [0, -5, True, 2**70])
def test_a_limit_that_is_no_number_of_tokens_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="max_tokens"):
        check_max_tokens(value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")), ("top_p", 1.1),
        ("top_p", -0.1), ("top_k", -1), ("top_k", True), ("min_p", 2), ("repetition_penalty", 0),
        ("presence_penalty", float("nan")), ("frequency_penalty", 1e9), ("seed", -(2**70)), ("seed", 2**70),
        ("seed", 1.5), ("logit_bias", ((-1, 1.0),)), ("logit_bias", ((1, float("inf")),)),
    ],
)  # fmt: skip
def test_values_that_can_not_be_right_are_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=option):
        Sampling(**{option: value})


def test_an_empty_prompt_and_an_empty_stop_string_are_refused() -> None:
    with pytest.raises(ValidationError, match="prompt is empty"):
        GenerationRequest(())
    with pytest.raises(ValidationError, match="stop"):
        request(stop=("a", ""))


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1e-9}, {"top_p": 0}, {"top_k": 1}])
def test_sampling_that_leaves_one_choice_is_greedy(options: dict[str, float]) -> None:
    assert Sampling(**options).greedy  # type: ignore[arg-type]
    assert not Sampling().greedy
