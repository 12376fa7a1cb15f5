"""Describe a model: make a ModelInfo from a snapshot, and the numbers that `show` prints from its config."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from mlxk2.checkpoint import compatibility, health
from mlxk2.checkpoint.files import BrokenFile
from mlxk2.checkpoint.model_info import Framework, ModelInfo, ModelType
from mlxk2.checkpoint.snapshot import Snapshot
from mlxk2.names import DEFAULT_ORG

MAX_ATTEMPTS = 5  # To describe a model that changes during each attempt.
TEXT_TYPES: tuple[ModelType, ...] = ("chat", "base")  # They generate text, so they need a tokenizer.

_LAST_SECOND = 253_402_300_799  # The end of the year 9999, the last year of a date in ISO 8601.
_CHAT_NAME = re.compile(r"instruct|chat", re.IGNORECASE)
_EMBEDDING_TASKS = ("feature-extraction", "sentence-similarity")
_EMBEDDING_ARCHITECTURE = re.compile(r"Embedding|Bert\w*Model$|RobertaModel$|MPNetModel$")
_CAUSAL_ARCHITECTURE = re.compile(r"ForCausalLM|LMHeadModel")
# Models that also read images or sound: mlx-lm loads only their language model.
_WRITING_ARCHITECTURE = re.compile(r"ForCausalLM|LMHeadModel|ForConditionalGeneration")
_MLX_LIBRARIES = ("mlx", "mlx-lm")
_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "context_length",
    "max_sequence_length",
    "max_seq_len",
    "model_max_length",
    "seq_len",
)
MAX_CONTEXT_TOKENS = 1 << 30  # Far above every model; configs use larger numbers to mean "no limit".


def find_and_describe(find: Callable[[], Snapshot]) -> tuple[Snapshot, ModelInfo]:
    """Describe the snapshot that `find` returns; pass on errors of `find`.

    A pull or a removal can run at the same time. If the model is unhealthy and changed in between, find and describe it
    again.
    """
    snapshot = find()
    for _ in range(MAX_ATTEMPTS):
        info = describe(snapshot)
        if info.is_healthy or (again := find()).is_unchanged_since(snapshot):
            return snapshot, info
        snapshot = again
    return snapshot, describe(snapshot)


def describe(snapshot: Snapshot) -> ModelInfo:
    """Return the description of a snapshot's model, damaged or not."""
    framework = detect_framework(snapshot)
    problem = health.first_problem(snapshot, needs_tokenizer(snapshot))
    try:
        modified = int(os.stat(snapshot.path).st_mtime)
    except OSError:
        modified = 0
    return ModelInfo(
        name=snapshot.name,
        commit=snapshot.commit,
        size_bytes=snapshot.size_bytes,
        modified=min(max(modified, 0), _LAST_SECOND),
        framework=framework,
        model_type=detect_model_type(snapshot),
        problem=problem.text if problem else None,
        problem_file=problem.file if problem else None,
        is_refused=problem is not None and problem.is_refused,
        why_not_runnable=problem.text if problem else why_not_runnable(snapshot, framework),
    )


def detect_framework(snapshot: Snapshot) -> Framework:
    """Return the framework for which a model's weights were made."""
    # mlx-lm can also load weights of another library if it knows most of their names. An embedding model is excluded:
    # it has the architecture of a text model, but can't predict a next token.
    architectures = _architectures(snapshot)
    writes = not architectures or any(map(_WRITING_ARCHITECTURE.search, architectures))
    if _is_marked_mlx(snapshot) or (
        writes and compatibility.problem_of_model(snapshot) is None and detect_model_type(snapshot) != "embedding"
    ):
        return "MLX"
    if snapshot.files_ending(".gguf"):
        return "GGUF"
    return "PyTorch" if health.weight_names(snapshot) else "Unknown"


def _is_marked_mlx(snapshot: Snapshot) -> bool:
    """Return whether the model's name, card, weights or config show that it was made for MLX."""
    if snapshot.name.startswith(DEFAULT_ORG + "/"):
        return True
    card = snapshot.card("mlx", "MLX")
    if card is not None and ("mlx" in map(str.lower, card.tags) or card.library_name.lower() in _MLX_LIBRARIES):
        return True
    if "mlx" in snapshot.safetensors.values():
        return True
    # Only MLX's converters write the key `quantization`; other programs write `quantization_config`.
    settings = snapshot.config_or_empty.get("quantization")
    is_quantized = isinstance(settings, dict) and {"group_size", "bits"} <= settings.keys()
    return is_quantized and bool(compatibility.loaded_weights(snapshot))


def detect_model_type(snapshot: Snapshot) -> ModelType:
    """Return the type of a model, judged by its config, its card, its chat template and its name."""
    architectures = " ".join(_architectures(snapshot))
    card = snapshot.card(*_EMBEDDING_TASKS)
    embeds = card is not None and card.pipeline_tag in _EMBEDDING_TASKS
    if embeds or "embed" in snapshot.name.lower() or _EMBEDDING_ARCHITECTURE.search(architectures):
        return "embedding"
    if snapshot.has_chat_template or _CHAT_NAME.search(snapshot.name):
        return "chat"
    return "base" if _CAUSAL_ARCHITECTURE.search(architectures) else "unknown"


def _architectures(snapshot: Snapshot) -> list[str]:
    named = snapshot.config_or_empty.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def needs_tokenizer(snapshot: Snapshot) -> bool:
    """Return whether a model generates text: its type says so, or the type is unknown but mlx-lm can run the model."""
    model_type = detect_model_type(snapshot)
    if model_type in TEXT_TYPES:
        return True
    # Models without a tokenizer (embedding models, draft models, parts of models) have `architectures` in their config.
    is_unnamed = model_type == "unknown" and not any(_architectures(snapshot))
    return is_unnamed and detect_framework(snapshot) == "MLX" and compatibility.problem_of_model(snapshot) is None


def why_not_runnable(snapshot: Snapshot, framework: Framework) -> str | None:
    """Return why mlx-lm can't run a model whose files are complete, or None when it can."""
    if framework != "MLX":
        return f"Framework {framework} not executable with mlx-lm (requires MLX)"
    if reason := compatibility.problem_of_model(snapshot):
        return reason
    if problem := health.apply(health.has_tokenizer, snapshot):
        return problem.text
    mlx_lm = compatibility.installation()
    return compatibility.problem_of_tokenizer(snapshot, mlx_lm) if mlx_lm else None


class ModelMetadata(NamedTuple):
    """Numbers of a model's architecture from its config; None for each one that the config lacks."""

    architecture: str | None
    context_length: int | None
    vocab_size: int | None
    hidden_size: int | None
    num_hidden_layers: int | None
    num_attention_heads: int | None
    quantization: str | None


def read_metadata(snapshot: Snapshot) -> ModelMetadata | None:
    """Return the numbers of a model's architecture, or None for a model without a config."""
    config = snapshot.config_or_empty
    if not config:
        return None
    architecture = config.get("model_type")
    return ModelMetadata(
        architecture=architecture if isinstance(architecture, str) else None,
        context_length=context_length(snapshot),
        vocab_size=_number(config, "vocab_size"),
        hidden_size=_number(config, "hidden_size", "n_embd", "d_model"),
        num_hidden_layers=_number(config, "num_hidden_layers", "n_layer", "n_layers"),
        num_attention_heads=_number(config, "num_attention_heads", "n_head", "n_heads"),
        quantization=_quantization(config),
    )


def _number(config: Mapping[str, Any], *keys: str) -> int | None:
    """Return the first positive integer with one of these keys, first in a config, then in its `text_config`."""
    inner = config.get("text_config")
    sources = (config, inner) if isinstance(inner, dict) else (config,)
    values = (source.get(key) for source in sources for key in keys)
    return next((value for value in values if type(value) is int and value > 0), None)


def _quantization(config: Mapping[str, Any]) -> str | None:
    """Return how a config's weights are quantised, such as `4 bit affine`, or None."""
    settings = config.get("quantization") or config.get("quantization_config")
    if not isinstance(settings, dict):
        return None
    bits, method = settings.get("bits"), settings.get("quant_method") or settings.get("mode")
    parts = [f"{bits} bit" if isinstance(bits, int) else "", method if isinstance(method, str) else ""]
    return " ".join(filter(None, parts)) or None


def context_length(snapshot: Snapshot) -> int | None:
    """Return the most tokens that a prompt and its completion can have together, or None if that is unknown.

    The number comes from config.json, or else from tokenizer_config.json.
    """
    if found := length_in_config(snapshot.config_or_empty):
        return found
    try:
        config = snapshot.json("tokenizer_config.json")
    except BrokenFile:
        return None
    return next(_lengths(config, ("model_max_length",)), None)


def length_in_config(config: Mapping[str, Any]) -> int | None:
    """Return the context length in a config, in tokens, or None if the config has none.

    Scaling of the positions raises the limit. It is computed as in transformers (modeling_rope_utils.py,
    `RopeParameters`): "a `factor` of x will enable the model to handle sequences of length x * original maximum
    pre-trained length". That length is `original_max_position_embeddings`. If it is missing, linear, dynamic and YaRN
    scaling use `max_position_embeddings`; for llama3 and longrope, the limit in the config already includes the
    scaling.
    """
    inner = config.get("text_config")
    for source in (config, inner) if isinstance(inner, dict) else (config,):
        if length := next(_lengths(source, _CONTEXT_KEYS), None):
            scaled = max(length, _scaled(source, length), _scaled(inner, length) if isinstance(inner, dict) else 0)
            return scaled if scaled < MAX_CONTEXT_TOKENS else length
    return None


def _lengths(source: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[int]:
    values = (source.get(key) for key in keys)
    return (value for value in values if type(value) is int and 0 < value < MAX_CONTEXT_TOKENS)


def _scaled(source: Mapping[str, Any], length: int) -> int:
    """Return the limit after scaling of the positions, or 0 if the config has no scaling."""
    scaling = source.get("rope_parameters") or source.get("rope_scaling")
    # If only some layers are scaled, as in Gemma 3, the limit in the config already includes the scaling.
    if not isinstance(scaling, dict) or "rope_local_base_freq" in source:
        return 0
    kind, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
    if not isinstance(kind, str) or not isinstance(factor, int | float) or not 1 < factor < math.inf:
        return 0
    named = (scaling.get("original_max_position_embeddings"), source.get("original_max_position_embeddings"))
    original = next((value for value in named if type(value) is int and value > 0), None)
    if original is None and (kind in ("linear", "dynamic") or "yarn" in kind):
        original = length
    return int(factor * original) if original is not None and original < MAX_CONTEXT_TOKENS else 0
