"""An architecture in name only."""


class ModelArgs:
    """Settings of the echo."""


class Model:
    """The echo."""

    def parameters(self) -> dict[str, object]:
        """None."""
        return {}

    def update(self, parameters: dict[str, object]) -> None:
        """Nothing to update."""

    def named_modules(self) -> list[tuple[str, object]]:
        """None."""
        return []
