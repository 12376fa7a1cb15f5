"""Functions on trees of parameters; the stand-in has no parameters."""

from __future__ import annotations

from typing import Any


def tree_flatten(tree: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the leaves of a flat tree."""
    return list(tree.items())


def tree_map(function: Any, tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree with its leaves replaced."""
    return {name: function(leaf) for name, leaf in tree.items()}
