"""An architecture in name only."""

from typing import Any


class ModelArgs:
    """Settings of the echo."""


class Model:
    """The echo; its cache holds the tokens that it was given."""

    def __call__(self, inputs: Any, cache: Any) -> None:
        """Add the tokens of a prompt to the cache."""
        cache[0].state += inputs[0]

    def parameters(self) -> dict[str, object]:
        """Return no parameters."""
        return {}

    def set_dtype(self, dtype: str, predicate: object) -> None:
        """Nothing to change."""

    def named_modules(self) -> list[tuple[str, object]]:
        """Return no modules."""
        return []
