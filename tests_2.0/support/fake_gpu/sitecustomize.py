"""Pretend to a program that MLX runs on a Mac's GPU: Python imports this file at its start when it is on the path.

MLX is real except for its description of the device. Each use of the device is logged as a line of the file that
`METAL_LOG` names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any


def _pretend() -> None:
    import mlx.core as mx  # noqa: PLC0415 - not in the processes of tokenizers

    def noting(word: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            _note(word)
            return function(*arguments)

        return call

    def set_limit(limit: int) -> int:
        _note(f"wired {limit}")
        return 0

    device = mx.default_device
    info: dict[str, str | int] = {
        "memory_size": 64 * 10**9,
        "max_recommended_working_set_size": 48 * 10**9,
        "resource_limit": 499_000,
    }
    mx.device_info = lambda *_: info
    mx.set_wired_limit = set_limit
    mx.clear_cache = noting("clear", mx.clear_cache)
    mx.async_eval = noting("step", mx.async_eval)
    # mlx-lm's streams must be on the real device.
    mx.default_device = lambda: mx.Device(mx.gpu) if _is_ours(sys._getframe(1).f_globals) else device()


def _is_ours(names: dict[str, Any]) -> bool:
    return str(names.get("__name__")).startswith("mlxk2.")


def _note(line: str) -> None:
    with open(os.environ["METAL_LOG"], "a", encoding="ascii") as log:
        log.write(f"{line}\n")


if "METAL_LOG" in os.environ and "mlxk2.runner.prompt.process" not in sys.orig_argv:
    _pretend()
