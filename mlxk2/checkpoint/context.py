"""How many tokens a model can hold, prompt and answer together, as its files say it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mlxk2.checkpoint.files import BrokenFile
from mlxk2.checkpoint.snapshot import Contents

_NAMES = (
    "max_position_embeddings", "n_positions", "context_length", "max_sequence_length", "max_seq_len",
    "model_max_length", "seq_len",
)  # fmt: skip
# No model that exists goes near this; configs write absurd numbers for "no limit".
_ABSURD = 1 << 30
_TOKENIZER_CONFIG = "tokenizer_config.json"


def context_length(contents: Contents) -> int | None:
    """How many tokens a model can hold: as its config says, else its tokenizer; None where neither does."""
    if found := length_in_config(contents.config_or_empty):
        return found
    try:
        hint = contents.json(_TOKENIZER_CONFIG) if _TOKENIZER_CONFIG in contents else {}
    except BrokenFile:
        return None
    return next(_lengths(hint, ("model_max_length",)), None)


def length_in_config(config: Mapping[str, Any]) -> int | None:
    """How many tokens the model of this config can hold; None where it does not say.

    A scaling of the positions lifts the limit, by what transformers means by its numbers (modeling_rope_utils.py,
    `RopeParameters`): "a `factor` of x will enable the model to handle sequences of length x * original maximum
    pre-trained length", which is `original_max_position_embeddings`, or `max_position_embeddings` for linear, dynamic
    and YaRN scaling where that is not given. Where llama3 and longrope give none, the config's limit includes it.
    """
    inner = config.get("text_config")
    for source in (config, inner) if isinstance(inner, dict) else (config,):
        if length := next(_lengths(source, _NAMES), None):
            scaled = max(length, _scaled(source, length), _scaled(inner, length) if isinstance(inner, dict) else 0)
            return scaled if scaled < _ABSURD else length
    return None


def _lengths(source: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[int]:
    values = (source.get(name) for name in names)
    return (value for value in values if type(value) is int and 0 < value < _ABSURD)


def _scaled(source: Mapping[str, Any], length: int) -> int:
    """The limit that the scaling of positions gives; 0 where there is none."""
    scaling = source.get("rope_parameters") or source.get("rope_scaling")
    # Where only some layers are scaled, as in Gemma 3, the limit of the config includes it.
    if not isinstance(scaling, dict) or "rope_local_base_freq" in source:
        return 0
    kind, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
    if not isinstance(kind, str) or not isinstance(factor, int | float) or not 1 < factor < math.inf:
        return 0
    named = (scaling.get("original_max_position_embeddings"), source.get("original_max_position_embeddings"))
    original = next((value for value in named if type(value) is int and value > 0), None)
    if original is None and (kind in ("linear", "dynamic") or "yarn" in kind):
        original = length
    return int(factor * original) if original is not None and original < _ABSURD else 0
