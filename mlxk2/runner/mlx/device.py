"""The device on which MLX computes: its memory, the wired limit, and changes that make a model fast on the CPU."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx import nn

from mlxk2.errors import ModelNotRunnableError
from mlxk2.formatting import reason_of
from mlxk2.runner.memory import Device

_NARROW = (mx.float16, mx.bfloat16)
_M_MMAP_THRESHOLD = -3  # See mallopt(3).
_LARGE_ARRAY_BYTES = 128 << 10


def current_device() -> Device:
    """Return the device on which MLX computes; raise ModelNotRunnableError if MLX can't use its GPU."""
    try:
        info = mx.device_info()
    except RuntimeError as error:
        reason = reason_of(error)
        hint = "Start mlxk2 outside its sandbox or virtual machine."
        raise ModelNotRunnableError(f"MLX can't use a GPU here: {reason}.", hint=hint) from error
    working_set = info.get("max_recommended_working_set_size")
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Device(
        # Only Metal's `memory_size` is the memory of the machine; with CUDA, use the memory of the host.
        memory=int(info.get("memory_size") or physical) if working_set else physical,
        working_set=int(working_set) if working_set else None,
        max_arrays=int(info["resource_limit"]) if "resource_limit" in info else None,
    )


@contextmanager
def wire(limit: int) -> Iterator[None]:
    """Keep up to `limit` bytes wired from now on, for fast access by the GPU; if the block fails, wire nothing.

    Use this only while MLX computes nothing. A limit of 0 changes nothing.
    """
    if not limit:
        yield
        return
    mx.set_wired_limit(limit)
    try:
        yield
    except BaseException:
        mx.set_wired_limit(0)
        raise


def release_freed_memory() -> None:
    """Return freed memory of MLX and of the C library to the system; call this when the process is idle."""
    mx.clear_cache()
    trim_heap()


def trim_heap() -> None:
    """Return freed memory of the C library to the system; only glibc can do this."""
    _call_glibc("malloc_trim", 0)


def release_large_arrays_at_once() -> None:
    """Let glibc return the memory of arrays of 128 KB and more to the system as soon as they are freed.

    That is glibc's default at the start of a program. But each freed large array raises the limit, up to 32 MB, and
    then smaller arrays leave holes into which the next batch does not fit. On other systems this does nothing.
    """
    _call_glibc("mallopt", _M_MMAP_THRESHOLD, _LARGE_ARRAY_BYTES)


def _call_glibc(name: str, *values: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*values)


def suit_cpu(model: Any) -> None:
    """On the CPU, convert 16-bit parameters to float32 before they are read, because 16-bit kernels are slow there."""
    if mx.default_device() == mx.cpu:
        model.set_dtype(mx.float32, _NARROW.__contains__)


def suit_batches_on_cpu(model: Any) -> None:
    """On the CPU, store matrices by columns before they are read, because they are multiplied as `x @ weight.T`.

    Then the BLAS in MLX's packages for Linux can use vector instructions, and a batch of eight takes half of the time.
    Loading takes longer, so a single completion would not gain from it.
    """
    if mx.default_device() != mx.cpu:
        return
    for _, module in model.named_modules():
        if type(module) in (nn.Linear, nn.Embedding):
            module.weight = mx.contiguous(module.weight.T).T
