"""What makes a model fast on the CPU: types and memory layouts that its kernels have a fast path for."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map

_NARROW = (mx.float16, mx.bfloat16)


def suit(model: Any) -> None:
    """Give the model the parameters that the CPU computes with best, before any of them is read; elsewhere do nothing.

    16-bit parameters become float32: there are no fast kernels for them. Matrices are laid out by columns, as they are
    multiplied (`x @ weight.T`): the BLAS of MLX's packages for Linux then adds up rows, which is vectorised, instead of
    one product after another; half of the time with a batch of eight.
    """
    if mx.default_device() != mx.cpu:
        return
    model.update(tree_map(_widened, model.parameters()))
    for _, module in model.named_modules():
        if type(module) in (nn.Linear, nn.Embedding):
            module.weight = mx.contiguous(module.weight.T).T


def _widened(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if array.dtype in _NARROW else array
