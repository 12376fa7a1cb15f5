"""Plan the memory of a model, from the user's choice and the device's memory. This module does not import MLX."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mlxk2.errors import InsufficientMemoryError
from mlxk2.formatting import human_size, parse_size

WIRED_VARIABLE = "MLXK2_WIRED_LIMIT"
# Bytes for running completions and for MLX's computations, in addition to weights and prompt cache.
_WORK_BYTES = 4 * 10**9
_GOOD_SHARE = 0.9  # Of the working set; if more is used, macOS begins to move GPU memory.
_MAX_GPU_SHARE = 15 / 16  # The share of the memory that macOS allows for the GPU.
_MIB = 1 << 20


class MemoryChoice(NamedTuple):
    """The numbers of bytes that the user chose; None means a number that suits the model."""

    prompt_cache: int | None = None
    wired: int | None = None


AUTOMATIC = MemoryChoice()


class MemoryPlan(NamedTuple):
    """The most bytes of the prompt cache, and the bytes to keep wired."""

    prompt_cache: int
    wired: int


def wired_limit(environment: Mapping[str, str]) -> int | None:
    """Return how many bytes the user wants to keep wired on a Mac, or None if mlxk2 shall decide."""
    given = environment.get(WIRED_VARIABLE)
    return parse_size(given, WIRED_VARIABLE, "8GB, or 0 to wire nothing") if given else None


@dataclass(frozen=True)
class Device:
    """The device on which MLX computes: its memory in bytes, and the limits of Metal.

    `working_set` is the most memory in bytes that Metal recommends to use, and `max_arrays` the most arrays that can
    exist at the same time; both are None without Metal.
    """

    memory: int
    working_set: int | None = None
    max_arrays: int | None = None

    @property
    def max_cached_arrays(self) -> int | None:
        """The most arrays of the prompt cache: a quarter of all, so that running completions always have enough."""
        return self.max_arrays // 4 if self.max_arrays is not None else None

    def plan(self, name: str, weights: int, choice: MemoryChoice = AUTOMATIC) -> MemoryPlan:
        """Plan the memory for a model with `weights` bytes of weights, by the user's choice or by the model's needs.

        Raise InsufficientMemoryError if the weights are larger than the memory; warn if they barely fit.
        """
        self._check(name, weights)
        free = int(_GOOD_SHARE * (self.working_set or self.memory)) - weights
        prompt_cache, wired = choice
        if prompt_cache is None:
            prompt_cache = max(min(self.memory // 8, free // 2), 0)
        if self.working_set is None:
            return MemoryPlan(prompt_cache, 0)
        if wired is not None and wired > self.working_set:
            logging.getLogger(__name__).warning(
                "%s is %s, but the GPU should use at most %s; so only that much is wired.",
                WIRED_VARIABLE,
                human_size(wired),
                human_size(self.working_set),
            )
        needed = weights + prompt_cache + _WORK_BYTES if wired is None else wired
        return MemoryPlan(prompt_cache, min(self.working_set, needed))

    def _check(self, name: str, weights: int) -> None:
        """Raise InsufficientMemoryError if the weights are larger than the memory; warn if they barely fit."""
        needed = f"The weights of {name} need {human_size(weights)} of memory"
        working_set = self.working_set
        if weights > self.memory:
            of_gpu = f" ({human_size(working_set)} of it for the GPU)" if working_set else ""
            raise InsufficientMemoryError(
                f"{needed}, but there are only {human_size(self.memory)}{of_gpu}. "
                "Choose a smaller or more strongly quantized model."
            )
        if not working_set or weights <= _GOOD_SHARE * working_set:
            return
        raised = min((weights + _WORK_BYTES) / _GOOD_SHARE, self.memory * _MAX_GPU_SHARE)
        if raised <= working_set:
            remedy = "Choose a smaller or more strongly quantized model."
        else:
            remedy = (
                f"`sudo sysctl iogpu.wired_limit_mb={int(raised) // _MIB}` lets it use more until the next restart; "
                "or choose a smaller or more strongly quantized model."
            )
        logging.getLogger(__name__).warning(
            "%s, but the GPU should use at most %s: completions may be slow or fail. %s",
            needed,
            human_size(working_set),
            remedy,
        )
