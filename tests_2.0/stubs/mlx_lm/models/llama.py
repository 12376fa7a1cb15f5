"""An architecture in name only."""

from typing import Any


class ModelArgs:
    """Settings of the echo."""


class Model:
    """The echo, whose cache is what it was given."""

    def __call__(self, inputs: Any, cache: Any) -> None:
        """Take the tokens of a prompt."""
        cache[0].state += inputs[0]

    def parameters(self) -> dict[str, object]:
        """None."""
        return {}

    def set_dtype(self, dtype: str, predicate: object) -> None:
        """Nothing to change."""

    def named_modules(self) -> list[tuple[str, object]]:
        """None."""
        return []
