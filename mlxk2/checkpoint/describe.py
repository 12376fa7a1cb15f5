"""What a model is, said in the terms of the JSON API: a snapshot becomes a ModelObject."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from mlxk2.checkpoint import compatibility, health, safetensors, tokenizer_files
from mlxk2.checkpoint.context import context_length
from mlxk2.checkpoint.files import BrokenFile, File
from mlxk2.checkpoint.snapshot import Contents, Snapshot
from mlxk2.names import DEFAULT_ORG

if TYPE_CHECKING:
    from mlxk2.spec import Capability, Framework, Metadata, ModelObject, ModelType

MAX_LOOKS = 5  # at a model that changes under each

CAPABILITIES: dict[ModelType, list[Capability]] = {
    "chat": ["text-generation", "chat"],
    "base": ["text-generation", "completion"],
    "embedding": ["embeddings"],
    "unknown": [],
}
TEXT_TYPES: tuple[ModelType, ...] = ("chat", "base")  # they generate text, so they need a tokenizer
_NUMBERS = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
}
_LAST_SECOND = 253_402_300_799  # of the year 9999: the format has no room for more
_CHAT_NAME = re.compile(r"instruct|chat", re.IGNORECASE)
_GROUP_ORDER = ".g_idx"  # how a tensor's name ends that says which group each input belongs to
_QUANTIZATION_FILE = "hf_quant_config.json"
_EMBEDDING_TASKS = ("feature-extraction", "sentence-similarity")
_EMBEDDING_ARCHITECTURE = re.compile(r"Embedding|Bert\w*Model$|RobertaModel$|MPNetModel$")
_CAUSAL_ARCHITECTURE = re.compile(r"ForCausalLM|LMHeadModel")
# Of models that also see or hear, mlx-lm loads the part that writes text.
_WRITING_ARCHITECTURE = re.compile(r"ForCausalLM|LMHeadModel|ForConditionalGeneration")
_MLX_LIBRARIES = ("mlx", "mlx-lm")


def look(find: Callable[[], Snapshot]) -> tuple[Contents, ModelObject]:
    """Read and describe the snapshot that `find` finds; what `find` raises is raised, as for a model that is gone.

    A pull or a removal may be at work beside: a model that is unhealthy is looked at anew as long as it changes.
    """
    contents = Contents(find())
    for _ in range(MAX_LOOKS):
        model = describe_contents(contents)
        if model["health"] == "healthy" or (again := Contents(find())).is_unchanged_since(contents):
            return contents, model
        contents = again
    return contents, describe_contents(contents)


def describe_contents(contents: Contents) -> ModelObject:
    """Return the model object of a snapshot's contents; a damaged model is described like any other."""
    snapshot = contents.snapshot
    framework = framework_of(contents)
    model_type = model_type_of(contents)
    damage = health.first_problem(contents, needs_tokenizer(contents))
    reason = damage or why_not_runnable(contents, framework)
    return {
        "name": snapshot.name,
        "hash": snapshot.commit,
        "size_bytes": contents.size_bytes,
        "last_modified": _timestamp(snapshot.path),
        "framework": framework,
        "model_type": model_type,
        "capabilities": CAPABILITIES[model_type],
        "health": "unhealthy" if damage else "healthy",
        "runtime_compatible": reason is None,
        "reason": reason,
        "cached": True,
    }


def framework_of(contents: Contents) -> Framework:
    """The framework that a model's weights are made for."""
    if _says_mlx(contents) or _loads_as_it_is(contents):
        return "MLX"
    if contents.named(".gguf"):
        return "GGUF"
    return "PyTorch" if health.weight_names(contents) else "Unknown"


def _says_mlx(contents: Contents) -> bool:
    if contents.snapshot.name.startswith(DEFAULT_ORG + "/"):
        return True
    card = contents.card("mlx", "MLX")
    if card is not None and ("mlx" in map(str.lower, card.tags) or card.library_name.lower() in _MLX_LIBRARIES):
        return True
    headers = contents.safetensors.values()
    if any(isinstance(header, dict) and header.get("format") == "mlx" for header in headers):
        return True
    # Only MLX's converters write this key; that of all others is `quantization_config`.
    settings = contents.config_or_empty.get("quantization")
    return isinstance(settings, dict) and {"group_size", "bits"} <= settings.keys() and bool(_loaded_weights(contents))


def _loads_as_it_is(contents: Contents) -> bool:
    """Whether mlx-lm loads the weights though they were made for another library: it knows the names of most."""
    architectures = list(_architectures(contents))
    writes = not architectures or any(map(_WRITING_ARCHITECTURE.search, architectures))
    # An embedding model has the architecture of a text model, and no head for the next token.
    return writes and _why_not_loadable(contents) is None and model_type_of(contents) != "embedding"


def model_type_of(contents: Contents) -> ModelType:
    """What a model is for, by its config, its card, its chat template and its name."""
    name = contents.snapshot.name
    architectures = " ".join(_architectures(contents))
    card = contents.card(*_EMBEDDING_TASKS)
    embeds = card is not None and card.pipeline_tag in _EMBEDDING_TASKS
    if embeds or "embed" in name.lower() or _EMBEDDING_ARCHITECTURE.search(architectures):
        return "embedding"
    if contents.has_chat_template or _CHAT_NAME.search(name):
        return "chat"
    return "base" if _CAUSAL_ARCHITECTURE.search(architectures) else "unknown"


def _architectures(contents: Contents) -> Iterable[str]:
    named = contents.config_or_empty.get("architectures")
    return (name for name in named if isinstance(name, str)) if isinstance(named, list) else ()


def needs_tokenizer(contents: Contents) -> bool:
    """Whether a model generates text, as its type says; where nothing tells the type, as mlx-lm says that runs it."""
    model_type = model_type_of(contents)
    if model_type in TEXT_TYPES:
        return True
    # Embedding models, drafts and parts of others, which come without a tokenizer, name their architectures.
    is_silent = model_type == "unknown" and not any(_architectures(contents))
    return is_silent and framework_of(contents) == "MLX" and _why_not_loadable(contents) is None


def why_not_runnable(contents: Contents, framework: Framework) -> str | None:
    """Why mlx-lm can't run a model whose files are whole; None when it can."""
    if framework != "MLX":
        return f"Framework {framework} not executable with mlx-lm (requires MLX)"
    if reason := _why_not_loadable(contents) or health.has_tokenizer(contents):
        return reason
    mlx_lm = compatibility.installation()
    return tokenizer_files.problem(contents, mlx_lm) if mlx_lm else None


def _why_not_loadable(contents: Contents) -> str | None:
    """Why mlx-lm can't load a model's config and weights."""
    try:
        if problem := compatibility.problem(_config_to_load(contents), compatibility.installation()):
            return problem
        if contents.has_marked_config:
            return "config.json begins with a byte order mark, which mlx-lm can't read"
    except BrokenFile as error:
        return str(error)
    weights = _loaded_weights(contents)
    if not weights:
        return "No model*.safetensors, the only weights that mlx-lm loads"
    return _why_not_unpacked(contents, weights)


def _loaded_weights(contents: Contents) -> list[File]:
    """The files of weights that mlx-lm reads."""
    return [f for f in contents.named(".safetensors") if f.name.startswith("model") and "/" not in f.name]


def _why_not_unpacked(contents: Contents, weights: Iterable[File]) -> str | None:
    """Why mlx-lm can't unpack weights of GPTQ or AWQ: it reads none with an order of their groups."""
    method = (compatibility.quantization_of(contents.config_or_empty) or {}).get("quant_method")
    if method not in ("gptq", "awq") or isinstance(contents.config_or_empty.get("quantization"), dict):
        return None
    found = compatibility.installation()
    version = found.version if found else ""
    has_order = any(safetensors.has_tensor(file, _GROUP_ORDER) for file in weights)
    return f"Quantization '{method} (g_idx)' not supported by mlx-lm {version}" if has_order else None


def _config_to_load(contents: Contents) -> dict[str, Any]:
    """The config as mlx-lm completes it: some exports keep their quantisation in a file of its own."""
    config = contents.config_or_empty
    if _QUANTIZATION_FILE not in contents or compatibility.quantization_of(config) is not None:
        return config
    return {**config, "quantization_config": contents.json(_QUANTIZATION_FILE)}


def metadata_of(contents: Contents) -> Metadata | None:
    """What a model's config says of it in numbers; None without a config."""
    config = contents.config_or_empty
    if not config:
        return None
    found: dict[str, object] = {
        "architecture": config.get("model_type") if isinstance(config.get("model_type"), str) else None,
        "context_length": context_length(contents),
        **{key: next(_numbers(config, names), None) for key, names in _NUMBERS.items()},
        "quantization": _quantization(config),
    }
    return cast("Metadata", {key: value for key, value in found.items() if value is not None})


def _numbers(config: Mapping[str, Any], names: Sequence[str]) -> Iterator[int]:
    """The positive whole numbers that a config, then the `text_config` inside it, has under these names."""
    inner = config.get("text_config")
    sources = (config, inner) if isinstance(inner, dict) else (config,)
    values = (source.get(name) for source in sources for name in names)
    return (value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _quantization(config: dict[str, object]) -> str | None:
    settings = config.get("quantization") or config.get("quantization_config")
    if not isinstance(settings, dict):
        return None
    bits, method = settings.get("bits"), settings.get("quant_method") or settings.get("mode")
    parts = [f"{bits} bit" if isinstance(bits, int) else "", method if isinstance(method, str) else ""]
    return " ".join(filter(None, parts)) or None


def _timestamp(path: str) -> str:
    """When a path was last modified, in UTC, whole seconds; 1970 for what is gone or before."""
    try:
        modified = int(os.stat(path).st_mtime)
    except OSError:
        modified = 0
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(max(modified, 0), _LAST_SECOND)))
