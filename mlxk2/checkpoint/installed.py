"""Where mlx-lm is installed, found without running any of it: only a submodule's search would import the package."""

from __future__ import annotations

from importlib import import_module
from importlib.machinery import PathFinder

# What reads the tokenizers that some models come with.
PACKAGES = ("tiktoken", "sentencepiece", "mistral_common")


def has(module: str) -> bool:
    """Whether a module is installed."""
    return PathFinder.find_spec(module) is not None


def mlx_lm() -> str | None:
    """The folder of the installed mlx-lm, or None."""
    # Asked first, since it is at hand: the whole search, which editable installations need, is slow to import.
    spec = PathFinder.find_spec("mlx_lm") or import_module("importlib.util").find_spec("mlx_lm")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder: str = spec.submodule_search_locations[0]
    return folder
