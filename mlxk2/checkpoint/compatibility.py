"""Whether the installed mlx-lm can run a model, read from mlx-lm's own files without importing it.

Importing mlx-lm costs a second and needs MLX; here only its sources are read: the table that maps a `model_type` to a
module, and the modules there are.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import chain
from typing import Any

from mlxk2.checkpoint import installed

_METHODS = {"bitnet", "mxfp4", "mxfp8", "compressed-tensors", "modelopt", "awq", "gptq", "fp8"}
_MODES = {"affine", "mxfp4", "mxfp8", "nvfp4"}
_COMPRESSED_FORMATS = {"nvfp4-pack-quantized", "mxfp4-pack-quantized", "pack-quantized"}
_FP8_SCALES = "weight_scale_inv"  # an architecture that knows this name brings fp8 weights to bf16 itself
# A name bound at the top level: by a class, an assignment, or an import, which may go over lines in parentheses.
_BINDING = r"^(?:class {0}\b|{0}\s*=|from \S+ import (?:[^(\n]*|\([^)]*)\b{0}\b)"


class Installation:
    """An installed mlx-lm: its version and the architectures it has."""

    def __init__(self, folder: str) -> None:
        version = re.search(r"""__version__ = ["']([^"']+)""", _text(os.path.join(folder, "_version.py")))
        self.version = version[1] if version else ""
        source = _text(os.path.join(folder, "utils.py"))
        self._modules: dict[str, str] = _dictionary(source, "MODEL_REMAPPING")
        self._modules_of_architecture: dict[tuple[str, str], str] = _dictionary(
            source, "MODEL_ARCHITECTURE_REMAPPING"
        )
        self._models_folder = os.path.join(folder, "models")
        # Names are compared exactly, also where the file system does not.
        self._files = frozenset(os.listdir(self._models_folder) if os.path.isdir(self._models_folder) else ())
        self.chat_templates = _modules(os.path.join(folder, "chat_templates"))
        self.tool_parsers = _modules(os.path.join(folder, "tool_parsers"))
        self._sources: dict[str, str] = {}
        self._has: dict[str, bool] = {}

    def module_of(self, config: Mapping[str, Any]) -> str:
        """The name of the module that mlx-lm would load for a config; it need not exist."""
        model_type = config.get("model_type")
        architectures = config.get("architectures")
        listed = architectures if isinstance(architectures, list) else [architectures]
        for architecture in filter(_is_text, listed):
            if module := self._modules_of_architecture.get((str(model_type), architecture)):
                return module
        return self._modules.get(str(model_type), str(model_type))

    def has(self, module: str) -> bool:
        """Whether a module of this name is an architecture, that is, binds Model and ModelArgs."""
        if module not in self._has:
            source = self.source(module)
            names = ("Model", "ModelArgs")
            self._has[module] = all(re.search(_BINDING.format(name), source, re.MULTILINE) for name in names)
        return self._has[module]

    def source(self, module: str) -> str:
        """The text of an architecture's module; empty where there is none."""
        if module not in self._sources:
            is_there = f"{module}.py" in self._files
            self._sources[module] = _text(os.path.join(self._models_folder, f"{module}.py")) if is_there else ""
        return self._sources[module]


@lru_cache(maxsize=1)
def installation() -> Installation | None:
    """The installed mlx-lm, or None."""
    folder = installed.mlx_lm()
    return None if folder is None else Installation(folder)


def problem(config: Mapping[str, Any], mlx_lm: Installation | None) -> str | None:
    """Why mlx-lm can't run a model with this config; None when it can."""
    if mlx_lm is None:
        return "mlx-lm is not installed"
    if config.get("model_file") is not None:
        return "config.json names code of its own to be run (model_file), which is never executed"
    module = mlx_lm.module_of(config)
    if not mlx_lm.has(module):
        shown = config.get("model_type") or "unknown"
        return f"Model architecture {shown!r} not supported by mlx-lm {mlx_lm.version}"
    method = _unknown_quantization(config, mlx_lm.source(module))
    return f"Quantization {method!r} not supported by mlx-lm {mlx_lm.version}" if method else None


def _unknown_quantization(config: Mapping[str, Any], source: str) -> str | None:
    """The name of a quantisation that mlx-lm can't load with this architecture."""
    own = config.get("quantization")
    if isinstance(own, dict):
        return _unknown_mode(own)
    settings = quantization_of(config)
    if not settings:
        return None
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in _METHODS:
        return str(method)
    supported = {
        "compressed-tensors": str(settings.get("format")) in _COMPRESSED_FORMATS,
        "modelopt": _modelopt_algorithm(settings) == "NVFP4",
        "awq": settings.get("bits", 4) == 4,
        "gptq": settings.get("bits", 4) == 4,
        "fp8": _is_mxfp8(settings) or _FP8_SCALES in source,
    }
    return None if supported.get(method, True) else _full_name(method, settings)


def _unknown_mode(settings: dict[str, Any]) -> str | None:
    """What in the settings of MLX's own quantisation it can't load: a mode, of all layers or of one, or a lack."""
    # Without a mode it is affine; null is that too for all layers, which are looked at, but not for one.
    general = "affine" if settings.get("mode") is None else settings["mode"]
    layers = [entry.get("mode", "affine") for entry in settings.values() if isinstance(entry, dict)]
    unknown = (str(mode) for mode in (general, *layers) if not _is_text(mode) or mode not in _MODES)
    lacking = (f"{general} (no {key})" for key in ("group_size", "bits") if key not in settings)
    return next(chain(unknown, lacking), None)


def quantization_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings by which a config's weights were quantised by other programs than MLX."""
    text_config = config.get("text_config")
    inner = text_config.get("quantization_config") if isinstance(text_config, dict) else None
    settings = config.get("quantization_config", inner)
    return settings if isinstance(settings, dict) else None


def _modelopt_algorithm(settings: dict[str, Any]) -> object:
    inner = settings.get("quantization")
    return (inner if isinstance(inner, dict) else settings).get("quant_algo")


def _is_mxfp8(settings: dict[str, Any]) -> bool:
    return settings.get("scale_fmt") == "ue8m0" and settings.get("weight_block_size") == [32, 32]


def _full_name(method: str, settings: dict[str, Any]) -> str:
    details = {
        "compressed-tensors": settings.get("format"),
        "modelopt": _modelopt_algorithm(settings),
        "awq": f"{settings.get('bits')} bits",
        "gptq": f"{settings.get('bits')} bits",
    }
    detail = details.get(method)
    return f"{method} ({detail})" if detail else method


def _modules(folder: str) -> frozenset[str]:
    """The names of the modules in a folder."""
    names = os.listdir(folder) if os.path.isdir(folder) else ()
    return frozenset(name.removesuffix(".py") for name in names if name.endswith(".py")) - {"__init__"}


def _dictionary(source: str, name: str) -> dict[Any, Any]:
    """The dictionary literal bound to a name in a module's source."""
    literal = re.search(rf"^{name}(?::[^=]*)? = (\{{.*?^\}})", source, re.MULTILINE | re.DOTALL)
    value = ast.literal_eval(literal[1]) if literal else {}
    return value if isinstance(value, dict) else {}


def _text(path: str) -> str:
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read()


def _is_text(value: object) -> bool:
    return isinstance(value, str)
