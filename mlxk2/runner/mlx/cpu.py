"""What makes a model fast on the CPU: types and memory layouts that its kernels have a fast path for."""

from __future__ import annotations

import ctypes
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map

_NARROW = (mx.float16, mx.bfloat16)
# See mallopt(3).
_M_MMAP_THRESHOLD = -3
_LARGE = 128 << 10


def give_memory_back() -> None:
    """Have the memory of arrays of 128 KB and more returned to the system when they go, for a process that lives long.

    So begins every program with glibc; but there each large array that goes raises the limit, up to 32 MB, and what is
    below it leaves holes that the next batch, of another size, does not fit. Elsewhere this does nothing.
    """
    _call_glibc("mallopt", _M_MMAP_THRESHOLD, _LARGE)


def trim() -> None:
    """Return to the system what the C library keeps of freed memory, in whole pages; where it is not glibc, nothing."""
    _call_glibc("malloc_trim", 0)


def _call_glibc(name: str, *values: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*values)


def suit(model: Any) -> None:
    """On the CPU, turn 16-bit parameters into float32, before any is read: there are no fast kernels for them."""
    if mx.default_device() == mx.cpu:
        model.update(tree_map(_widened, model.parameters()))


def suit_batches(model: Any) -> None:
    """On the CPU, lay out matrices by columns, before any is read, as they are multiplied (`x @ weight.T`).

    The BLAS of MLX's packages for Linux then adds up rows, which is vectorised, instead of one product after another:
    half of the time with a batch of eight. Turning them over makes loading take longer, which one answer is not worth.
    """
    if mx.default_device() != mx.cpu:
        return
    for _, module in model.named_modules():
        if type(module) in (nn.Linear, nn.Embedding):
            module.weight = mx.contiguous(module.weight.T).T


def _widened(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if array.dtype in _NARROW else array
