"""The device that MLX computes on: its memory, what stays wired, and what makes a model fast on the CPU."""

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
# See mallopt(3).
_M_MMAP_THRESHOLD = -3
# Bytes.
_LARGE_ARRAY = 128 << 10


def current_device() -> Device:
    """Return the device that MLX computes on; raise ModelNotRunnableError where MLX can't reach its GPU."""
    try:
        info = mx.device_info()
    except RuntimeError as fault:
        reason = reason_of(fault)
        hint = "Start mlxk2 outside of the sandbox or virtual machine that it runs in."
        raise ModelNotRunnableError(f"MLX can't use a GPU here: {reason}.", hint=hint) from fault
    working_set = info.get("max_recommended_working_set_size")
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Device(
        # The key says the memory of the machine only where Metal does; CUDA can use that of the host.
        memory=int(info.get("memory_size") or physical) if working_set else physical,
        working_set=int(working_set) if working_set else None,
        max_arrays=int(info["resource_limit"]) if "resource_limit" in info else None,
    )


@contextmanager
def wired(limit: int) -> Iterator[None]:
    """Wire up to this many bytes from now on, which the GPU then reaches at once; wire none if the block fails.

    Use this only while nothing is computed. With 0 the limit stays as it is.
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
    """Return to the system the freed memory that MLX and the C library keep, when the process is at rest."""
    mx.clear_cache()
    trim_heap()


def trim_heap() -> None:
    """Return to the system the freed memory that the C library keeps, in whole pages; only glibc can."""
    _call_glibc("malloc_trim", 0)


def release_large_arrays_at_once() -> None:
    """Have the memory of arrays of 128 KB and more returned to the system when they go, in a process that lives long.

    Every program with glibc begins so. But then each large array that goes raises the limit, up to 32 MB, and smaller
    arrays leave holes that do not fit the next batch, of another size. On other systems this does nothing.
    """
    _call_glibc("mallopt", _M_MMAP_THRESHOLD, _LARGE_ARRAY)


def _call_glibc(name: str, *values: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*values)


def suit_cpu(model: Any) -> None:
    """On the CPU, turn 16-bit parameters into float32 before any is read: there are no fast kernels for them."""
    if mx.default_device() == mx.cpu:
        model.set_dtype(mx.float32, _NARROW.__contains__)


def suit_batches_on_cpu(model: Any) -> None:
    """On the CPU, lay out matrices by columns before any is read, as they are multiplied (`x @ weight.T`).

    The BLAS of MLX's packages for Linux then adds up rows, which is vectorised, instead of one product after another.
    A batch of eight takes half of the time. Loading takes longer, which is not worth it for a single completion.
    """
    if mx.default_device() != mx.cpu:
        return
    for _, module in model.named_modules():
        if type(module) in (nn.Linear, nn.Embedding):
            module.weight = mx.contiguous(module.weight.T).T
