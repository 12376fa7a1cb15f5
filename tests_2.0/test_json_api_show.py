"""`show --json`: the model, its metadata, its files and its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import pytest
from conftest import Program
from support.conformance import assert_envelope
from support.layouts import (
    CONFIG,
    LAYOUTS,
    CacheDir,
    Files,
    Layout,
    as_json,
    chat_model,
    gguf_model,
    shard_names,
    sharded_model,
    without,
)


class Show(Protocol):
    """Add a model and return the data that `show` prints for it."""

    def __call__(self, files: Files, *flags: str) -> dict[str, Any]: ...


@pytest.fixture
def show(cache_dir: CacheDir, mlxk2: Program) -> Show:
    """Return a function that adds a model and shows it."""

    def run(files: Files, *flags: str) -> dict[str, Any]:
        cache_dir.add("org/model", files)
        result = mlxk2("show", "org/model", *flags, "--json")
        assert result.code == 0
        assert_envelope(result.json, "show")
        data: dict[str, Any] = result.json["data"]
        return data

    return run


def test_files_and_config_are_shown_only_on_request(show: Show) -> None:
    assert set(show(chat_model())) == {"model", "metadata"}
    assert set(show(chat_model(), "--files")) == {"model", "metadata", "files"}
    assert set(show(chat_model(), "--config")) == {"model", "metadata", "config"}
    assert set(show(chat_model(), "--config", "--files")) == {"model", "metadata", "config", "files"}


def test_show_and_list_have_the_same_model_object(show: Show, mlxk2: Program) -> None:
    model = show(chat_model())["model"]
    assert mlxk2("list", "--json").json["data"]["models"] == [model]


# ------------------------------------------------------------------------------------------------------------ metadata


def test_metadata_comes_from_the_config(show: Show) -> None:
    assert show(chat_model(quantization={"group_size": 64, "bits": 4}))["metadata"] == {
        "architecture": "llama",
        "context_length": 2048,
        "vocab_size": 320,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "quantization": "4 bit",
    }


CONTEXT_KEYS = ["max_position_embeddings", "n_positions", "context_length", "max_sequence_length", "seq_len"]


@pytest.mark.parametrize("key", CONTEXT_KEYS)
@pytest.mark.parametrize("inner", [False, True])
def test_the_context_length_is_read_from_every_known_key(show: Show, key: str, inner: bool) -> None:
    config = {"model_type": "x", **({"text_config": {key: 77}} if inner else {key: 77})}
    assert show(chat_model() | {"config.json": as_json(config)})["metadata"]["context_length"] == 77


def test_an_unlimited_context_is_omitted(show: Show) -> None:
    assert "context_length" not in show(chat_model(max_position_embeddings=10**30))["metadata"]
    assert show(chat_model(max_position_embeddings=10**30, seq_len=7))["metadata"]["context_length"] == 7


@pytest.mark.parametrize("value", [None, "2048", -1, 0, True, 1.5, [], {}, "Infinity"])
def test_invalid_counts_are_omitted(show: Show, value: object) -> None:
    files = chat_model(**dict.fromkeys(CONFIG, value))
    assert set(show(files)["metadata"] or {}) <= {"architecture"}


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"quantization": {"bits": 4, "mode": "mxfp4"}}, "4 bit mxfp4"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, "8 bit gptq"),
        ({"quantization": {"bits": "4", "mode": 1}}, None),
        ({"quantization": 4}, None),
        ({}, None),
    ],
)
def test_the_quantization_is_described_in_words(show: Show, settings: dict[str, Any], shown: str | None) -> None:
    assert show(chat_model(**settings))["metadata"].get("quantization") == shown


def test_without_a_config_there_is_no_metadata(show: Show) -> None:
    data = show(gguf_model(), "--config")
    assert (data["metadata"], data["config"]) == (None, None)


# --------------------------------------------------------------------------------------------------------------- files


TYPES = {
    "config.json": "config",
    "generation_config.json": "config",
    "model.safetensors.index.json": "config",
    "1_Pooling/config.json": "config",
    "model.safetensors": "weights",
    "sub/x.gguf": "weights",
    "pytorch_model.bin": "weights",
    "training_args.bin": "other",
    "tokenizer.json": "tokenizer",
    "tokenizer_config.json": "tokenizer",
    "tokenizer.model": "tokenizer",
    "vocab.json": "tokenizer",
    "merges.txt": "tokenizer",
    "qwen.tiktoken": "tokenizer",
    "special_tokens_map.json": "tokenizer",
    "README.md": "readme",
    "onnx/model.onnx": "other",
    ".gitattributes": "other",
}


def test_every_file_has_the_right_type(show: Show) -> None:
    data = show(dict.fromkeys(TYPES, b"content"), "--files")
    assert {file["name"]: file["type"] for file in data["files"]} == TYPES


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_have_their_own_size_and_name_on_every_layout(
    isolated_cache: Path, mlxk2: Program, layout: Layout
) -> None:
    files = {"config.json": as_json(CONFIG), "deep/er/x.safetensors": b"x" * 1500, "empty": b""}
    CacheDir(isolated_cache, layout).add("org/model", files)
    shown = mlxk2("show", "org/model", "--files", "--json").json["data"]["files"]
    sizes = {file["name"]: file["size"] for file in shown}
    assert sizes == {"config.json": f"{len(files['config.json'])}B", "deep/er/x.safetensors": "1.5KB", "empty": "0B"}
    assert list(sizes) == sorted(sizes)


def test_files_of_a_damaged_model_are_listed(cache_dir: CacheDir, mlxk2: Program) -> None:
    snapshot = cache_dir.add("org/model", sharded_model())
    lost = shard_names(3)[0]
    (snapshot / lost).resolve().unlink()
    shown = mlxk2("show", "org/model", "--files", "--json").json["data"]["files"]
    assert {"name": lost, "size": "0B", "type": "weights"} in shown
    assert len(shown) == len(sharded_model())


# -------------------------------------------------------------------------------------------------------------- config


def test_the_config_is_shown_unchanged(show: Show) -> None:
    config = CONFIG | {"nested": {"list": [1, 2.5, None, True, "text"]}, "unicode": "é模", "empty": {}}
    assert show(chat_model() | {"config.json": as_json(config)}, "--config")["config"] == config


@pytest.mark.parametrize(
    ("text", "value"),
    [("Infinity", "Infinity"), ("-Infinity", "-Infinity"), ("NaN", "NaN"), ("1e999", "1e999"), ("-1E999", "-1E999")],
)
def test_numbers_that_json_cannot_hold_become_text(show: Show, text: str, value: str) -> None:
    config = b'{"model_type": "mamba2", "limit": [0.0, ' + text.encode() + b"]}"
    assert show(chat_model() | {"config.json": config}, "--config")["config"]["limit"] == [0.0, value]


@pytest.mark.parametrize("text", ["\\ud800", "\\udcff x", "\\u0000", "\\u001b[31m", "\\u202e"])
def test_control_characters_in_a_config_are_unchanged(show: Show, text: str) -> None:
    config = b'{"model_type": "' + text.encode() + b'"}'
    assert show(chat_model() | {"config.json": config}, "--config")["config"] == json.loads(config)


def test_a_broken_config_is_shown_as_null(show: Show) -> None:
    data = show(chat_model() | {"config.json": b"{"}, "--config")
    assert (data["config"], data["metadata"], data["model"]["health"]) == (None, None, "unhealthy")


def test_a_config_nested_too_deeply_is_shown_as_null(show: Show) -> None:
    config = b'{"a":' * 3000 + b"1" + b"}" * 3000
    assert show(chat_model() | {"config.json": config}, "--config")["config"] is None


def test_a_model_without_a_config_is_shown(show: Show) -> None:
    assert show(without(chat_model(), "config.json"), "--config")["model"]["reason"] == "config.json is missing"
