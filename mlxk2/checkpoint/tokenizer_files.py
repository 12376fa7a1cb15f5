"""Whether what is installed reads a model's tokenizer, told from its files alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlxk2.checkpoint import installed
from mlxk2.checkpoint.compatibility import Installation
from mlxk2.checkpoint.files import BrokenFile, File, read
from mlxk2.checkpoint.snapshot import Contents

# Read by the libraries themselves, without code of the model.
_READ_ALWAYS = ("tokenizer.json", "vocab.txt", "vocab.json")
_SENTENCEPIECE = ("tokenizer.model", "spiece.model")
_TIKTOKEN = "tiktoken.model"
_TEKKEN = "tekken.json"
# A line of a tiktoken file: a token in base64 and its rank.
_RANK = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s")
_FIRST_BYTES = 512


def problem(contents: Contents, mlx_lm: Installation) -> str | None:
    """Why a model's tokenizer can't be read; None where nothing in its files says so."""
    if (kind := template_type(contents)) and kind not in mlx_lm.chat_templates and not contents.has_own_template:
        return (
            f"tokenizer_config.json names the chat template {kind!r}, which mlx-lm {mlx_lm.version} does not have. "
            "Install a newer one with `pip install -U mlx-lm`"
        )
    if any(name in contents for name in _READ_ALWAYS):
        return None
    return _problem_of_packages(contents)


def template_type(contents: Contents) -> str | None:
    """The name of the chat template of mlx-lm that tokenizer_config.json asks for."""
    if not contents.names_template_type:
        return None
    found = _settings(contents).get("chat_template_type")
    return found if isinstance(found, str) else None


def is_tiktoken(begin: bytes) -> bool:
    """Whether a file that begins so has tiktoken's form, which some models have under the name of sentencepiece's."""
    return _RANK.match(begin) is not None


def _problem_of_packages(contents: Contents) -> str | None:
    named = [file for name in _SENTENCEPIECE if (file := contents.file(name))]
    if named:
        package = "tiktoken" if _is_tiktoken(named[0]) else "sentencepiece"
        return _needs(named[0].name, package, package)
    if _TIKTOKEN in contents:
        return _needs(_TIKTOKEN, "tiktoken", "tiktoken")
    if _TEKKEN in contents:
        return _needs(_TEKKEN, "mistral_common", "mistral-common")
    if "auto_map" in _settings(contents) or contents.named(".tiktoken"):
        found = contents.named(".tiktoken")
        name = found[0].name if found else "The tokenizer"
        return f"{name} needs code of the model's own, which is never executed, and there is no tokenizer.json"
    return None


def _needs(name: str, module: str, package: str) -> str | None:
    if installed.has(module):
        return None
    return f"{name} needs {package}, which is not installed. Install it with `pip install {package}`"


def _is_tiktoken(file: File) -> bool:
    try:
        return is_tiktoken(read(file, _FIRST_BYTES))
    except BrokenFile:
        return False


def _settings(contents: Contents) -> Mapping[str, Any]:
    try:
        return contents.json("tokenizer_config.json")
    except BrokenFile:
        return {}
