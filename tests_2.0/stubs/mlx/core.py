"""The few names of mlx.core that the runner uses directly; no arrays are computed."""

from __future__ import annotations

from typing import Any

cpu = "cpu"
float16, bfloat16, float32, uint32 = "float16", "bfloat16", "float32", "uint32"


def array(values: list[Any], dtype: str | None = None) -> list[Any]:
    """Return a list in place of an array."""
    return list(values)


def default_device() -> str:
    """Return the CPU."""
    return cpu


def disable_compile() -> None:
    """Do nothing: nothing is compiled."""


def device_info() -> dict[str, Any]:
    """Return no facts about the device."""
    return {}


def eval(*arrays: Any) -> None:
    """Do nothing: nothing is lazy."""


def clear_cache() -> None:
    """Do nothing: no memory is reserved."""


def synchronize(stream: Any) -> None:
    """Do nothing: nothing is computed ahead."""
