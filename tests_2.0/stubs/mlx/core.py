"""The little of mlx.core that the runner touches itself: no arrays are computed."""

from __future__ import annotations

from typing import Any

cpu = "cpu"
float16, bfloat16, float32, uint32 = "float16", "bfloat16", "float32", "uint32"


def array(values: list[Any], dtype: str | None = None) -> list[Any]:
    """A list."""
    return list(values)


def default_device() -> str:
    """The device of the stand-in."""
    return cpu


def disable_compile() -> None:
    """Nothing is compiled."""


def device_info() -> dict[str, Any]:
    """Nothing is known of the device."""
    return {}


def eval(*arrays: Any) -> None:
    """Nothing is lazy."""


def clear_cache() -> None:
    """Nothing is reserved."""


def synchronize(stream: Any) -> None:
    """Nothing is computed ahead."""
