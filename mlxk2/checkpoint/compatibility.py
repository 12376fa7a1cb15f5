"""Judge whether the installed packages can load a model: mlx-lm its config and weights, others its tokenizer.

Importing mlx-lm takes a second and needs MLX. This module only reads mlx-lm's sources: the table that maps a
`model_type` to a module, and the list of modules.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.machinery import PathFinder
from itertools import chain
from typing import Any

from mlxk2.checkpoint import safetensors
from mlxk2.checkpoint.files import BrokenFile, File, read
from mlxk2.checkpoint.snapshot import Snapshot

# These packages read the tokenizers of some models.
TOKENIZER_PACKAGES = ("tiktoken", "sentencepiece", "mistral_common")

_METHODS = {"bitnet", "mxfp4", "mxfp8", "compressed-tensors", "modelopt", "awq", "gptq", "fp8"}
_MODES = {"affine", "mxfp4", "mxfp8", "nvfp4"}
_COMPRESSED_FORMATS = {"nvfp4-pack-quantized", "mxfp4-pack-quantized", "pack-quantized"}
_FP8_SCALES = "weight_scale_inv"  # An architecture whose source has this name converts fp8 weights to bf16.
_GROUP_ORDER = ".g_idx"  # The ending of the name of a tensor that assigns each input to a group.
_QUANTIZATION_FILE = "hf_quant_config.json"
# A name bound at the top level: by a class, an assignment or an import, which can span lines in parentheses.
_BINDING = r"^(?:class {0}\b|{0}\s*=|from \S+ import (?:[^(\n]*|\([^)]*)\b{0}\b)"

# transformers reads these files without another package and without code of the model's own.
_READ_ALWAYS = ("tokenizer.json", "vocab.txt", "vocab.json")
_SENTENCEPIECE = ("tokenizer.model", "spiece.model")
_TIKTOKEN = "tiktoken.model"
_TEKKEN = "tekken.json"
_RANK = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s")  # A line of a tiktoken file: a token in base64 and its rank.
_FIRST_BYTES = 512


def is_installed(module: str) -> bool:
    """Return whether a module is installed."""
    return PathFinder.find_spec(module) is not None


def mlx_lm_folder() -> str | None:
    """Return the folder of the installed mlx-lm, or None, without running its code."""
    spec = PathFinder.find_spec("mlx_lm")
    if spec is None:
        # Editable installations need the full search, which is slow to import.
        from importlib.util import find_spec  # noqa: PLC0415 - most installations do not need it

        spec = find_spec("mlx_lm")
    return spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else None


class Installation:
    """The installed mlx-lm: its version and its architectures."""

    def __init__(self, folder: str) -> None:
        version = re.search(r"""__version__ = ["']([^"']+)""", _text(os.path.join(folder, "_version.py")))
        self.version = version[1] if version else ""
        source = _text(os.path.join(folder, "utils.py"))
        self._modules: dict[str, str] = _dictionary(source, "MODEL_REMAPPING")
        self._modules_of_architecture: dict[tuple[str, str], str] = _dictionary(source, "MODEL_ARCHITECTURE_REMAPPING")
        self._models_folder = os.path.join(folder, "models")
        # Compare names with the list of files, because some file systems ignore case.
        self._files = frozenset(os.listdir(self._models_folder) if os.path.isdir(self._models_folder) else ())
        self.chat_templates = _modules(os.path.join(folder, "chat_templates"))
        self.tool_parsers = _modules(os.path.join(folder, "tool_parsers"))
        self._sources: dict[str, str] = {}
        self._has: dict[str, bool] = {}

    def module_of(self, config: Mapping[str, Any]) -> str:
        """Return the name of the module that mlx-lm would load for a config, even if mlx-lm lacks that module."""
        model_type = config.get("model_type")
        architectures = config.get("architectures")
        for architecture in architectures if isinstance(architectures, list) else [architectures]:
            key = (str(model_type), str(architecture))
            if isinstance(architecture, str) and (module := self._modules_of_architecture.get(key)):
                return module
        return self._modules.get(str(model_type), str(model_type))

    def has(self, module: str) -> bool:
        """Return whether mlx-lm has this architecture: a module of this name that defines Model and ModelArgs."""
        if module not in self._has:
            source = self.source(module)
            names = ("Model", "ModelArgs")
            self._has[module] = all(re.search(_BINDING.format(name), source, re.MULTILINE) for name in names)
        return self._has[module]

    def source(self, module: str) -> str:
        """Return the source of an architecture's module, or an empty text if there is none."""
        if module not in self._sources:
            is_there = f"{module}.py" in self._files
            self._sources[module] = _text(os.path.join(self._models_folder, f"{module}.py")) if is_there else ""
        return self._sources[module]


def _modules(folder: str) -> frozenset[str]:
    names = os.listdir(folder) if os.path.isdir(folder) else ()
    return frozenset(name.removesuffix(".py") for name in names if name.endswith(".py")) - {"__init__"}


def _dictionary(source: str, name: str) -> dict[Any, Any]:
    """Return the dictionary literal that a module's source assigns to a name."""
    from ast import literal_eval  # noqa: PLC0415 - `list` imports this module and often needs no parser

    literal = re.search(rf"^{name}(?::[^=]*)? = (\{{.*?^\}})", source, re.MULTILINE | re.DOTALL)
    value = literal_eval(literal[1]) if literal else {}
    return value if isinstance(value, dict) else {}


def _text(path: str) -> str:
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read()


@lru_cache(maxsize=1)
def installation() -> Installation | None:
    """Return the installed mlx-lm, or None."""
    folder = mlx_lm_folder()
    return None if folder is None else Installation(folder)


def problem_of_model(snapshot: Snapshot) -> str | None:
    """Return why mlx-lm can't load a model's config and weights, or None when it can."""
    config = snapshot.config_or_empty
    mlx_lm = installation()
    try:
        # Some exports keep their quantisation in a separate file; mlx-lm adds it to the config in the same way.
        if _QUANTIZATION_FILE in snapshot and quantization_of(config) is None:
            config = {**config, "quantization_config": snapshot.json(_QUANTIZATION_FILE)}
        if problem := problem_of_config(config, mlx_lm):
            return problem
        if snapshot.has_marked_config:
            return "config.json begins with a byte order mark, which mlx-lm can't read"
    except BrokenFile as error:
        return str(error)
    weights = loaded_weights(snapshot)
    if not weights:
        return "No model*.safetensors, the only weights that mlx-lm loads"
    # mlx-lm unpacks weights of GPTQ and AWQ only if their groups are in the standard order.
    method = (quantization_of(snapshot.config_or_empty) or {}).get("quant_method")
    is_unpacked = method in ("gptq", "awq") and not isinstance(snapshot.config_or_empty.get("quantization"), dict)
    if is_unpacked and any(safetensors.has_tensor(file, _GROUP_ORDER) for file in weights):
        return f"Quantization '{method} (g_idx)' not supported by mlx-lm {mlx_lm.version if mlx_lm else ''}"
    return None


def loaded_weights(snapshot: Snapshot) -> list[File]:
    """Return the weight files that mlx-lm loads."""
    return [f for f in snapshot.files_ending(".safetensors") if f.name.startswith("model") and "/" not in f.name]


def problem_of_config(config: Mapping[str, Any], mlx_lm: Installation | None) -> str | None:
    """Return why mlx-lm can't run a model with this config, or None when it can."""
    if mlx_lm is None:
        return "mlx-lm is not installed"
    if config.get("model_file") is not None:
        return "config.json asks to run the model's own code (model_file), which is never executed"
    module = mlx_lm.module_of(config)
    if not mlx_lm.has(module):
        shown = config.get("model_type") or "unknown"
        return f"Model architecture {shown!r} not supported by mlx-lm {mlx_lm.version}"
    method = _unknown_quantization(config, mlx_lm.source(module))
    return f"Quantization {method!r} not supported by mlx-lm {mlx_lm.version}" if method else None


def _unknown_quantization(config: Mapping[str, Any], source: str) -> str | None:
    """Return the name of a quantisation that mlx-lm can't load with the architecture of this source, or None."""
    own = config.get("quantization")
    if isinstance(own, dict):
        # A missing mode means affine. The mode null also means affine for all layers, but is invalid for a single one.
        general = "affine" if own.get("mode") is None else own["mode"]
        layers = [entry.get("mode", "affine") for entry in own.values() if isinstance(entry, dict)]
        unknown = (str(mode) for mode in (general, *layers) if not isinstance(mode, str) or mode not in _MODES)
        lacking = (f"{general} (no {key})" for key in ("group_size", "bits") if key not in own)
        return next(chain(unknown, lacking), None)
    settings = quantization_of(config)
    if not settings:
        return None
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in _METHODS:
        return str(method)
    inner = settings.get("quantization")
    algorithm = (inner if isinstance(inner, dict) else settings).get("quant_algo")
    is_mxfp8 = settings.get("scale_fmt") == "ue8m0" and settings.get("weight_block_size") == [32, 32]
    four_bits = (f"{settings.get('bits')} bits", settings.get("bits", 4) == 4)
    # mlx-lm supports these methods only in some forms. Each has the name of its form, and whether that is supported.
    forms: dict[str, tuple[object, bool]] = {
        "compressed-tensors": (settings.get("format"), str(settings.get("format")) in _COMPRESSED_FORMATS),
        "modelopt": (algorithm, algorithm == "NVFP4"),
        "awq": four_bits,
        "gptq": four_bits,
        "fp8": (None, is_mxfp8 or _FP8_SCALES in source),
    }
    form, is_supported = forms.get(method, (None, True))
    if is_supported:
        return None
    return f"{method} ({form})" if form else method


def quantization_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings of a quantisation that was made without MLX, or None."""
    text_config = config.get("text_config")
    inner = text_config.get("quantization_config") if isinstance(text_config, dict) else None
    settings = config.get("quantization_config", inner)
    return settings if isinstance(settings, dict) else None


def problem_of_tokenizer(snapshot: Snapshot, mlx_lm: Installation) -> str | None:
    """Return why a model's tokenizer can't be loaded here, or None if its files show no reason."""
    if snapshot.names_template_type and not snapshot.has_own_template:
        template = _tokenizer_config(snapshot).get("chat_template_type")
        if isinstance(template, str) and template not in mlx_lm.chat_templates:
            return (
                f"tokenizer_config.json names the chat template {template!r}, which mlx-lm {mlx_lm.version} does not "
                "have. Install a newer one with `pip install -U mlx-lm`"
            )
    if any(name in snapshot for name in _READ_ALWAYS):
        return None
    for name in _SENTENCEPIECE:
        if file := snapshot.file(name):
            try:
                package = "tiktoken" if is_tiktoken(read(file, _FIRST_BYTES)) else "sentencepiece"
            except BrokenFile:
                package = "sentencepiece"
            return _problem_of_package(name, package, package)
    if _TIKTOKEN in snapshot:
        return _problem_of_package(_TIKTOKEN, "tiktoken", "tiktoken")
    if _TEKKEN in snapshot:
        return _problem_of_package(_TEKKEN, "mistral_common", "mistral-common")
    own = snapshot.files_ending(".tiktoken")
    if own or "auto_map" in _tokenizer_config(snapshot):
        name = own[0].name if own else "The tokenizer"
        return f"{name} needs the model's own code, which is never executed, and there is no tokenizer.json"
    return None


def _tokenizer_config(snapshot: Snapshot) -> Mapping[str, Any]:
    try:
        return snapshot.json("tokenizer_config.json")
    except BrokenFile:
        return {}


def _problem_of_package(name: str, module: str, package: str) -> str | None:
    if is_installed(module):
        return None
    return f"{name} needs {package}, which is not installed. Install it with `pip install {package}`"


def is_tiktoken(begin: bytes) -> bool:
    """Return whether these first bytes are of a tiktoken file; some models have one with the name `tokenizer.model`."""
    return _RANK.match(begin) is not None
