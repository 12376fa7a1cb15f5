"""The memory that a model may take: what the user chose, what the device has, and a plan for both. Needs no MLX."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mlxk2.errors import InsufficientMemoryError
from mlxk2.formatting import human_size, parse_size

WIRED_VARIABLE = "MLXK2_WIRED_LIMIT"
# Bytes beside weights and prompt cache: for completions under way, and for what MLX computes with.
_WORK_BYTES = 4 * 10**9
# The share of the working set to use; beyond it, macOS begins to move memory of the GPU about.
_GOOD_SHARE = 0.9
# The share of the memory that macOS lets the GPU have.
_MAX_GPU_SHARE = 15 / 16
_MIB = 1 << 20


class MemoryChoice(NamedTuple):
    """The numbers of bytes that the user chose; None for what suits the model."""

    prompt_cache: int | None = None
    wired: int | None = None


AUTOMATIC = MemoryChoice()


class MemoryPlan(NamedTuple):
    """How many bytes the prompt cache may take, and how many bytes stay wired."""

    prompt_cache: int
    wired: int


def wired_limit(environment: Mapping[str, str]) -> int | None:
    """Return how many bytes the user wants to stay wired on a Mac, None if mlxk2 shall decide."""
    given = environment.get(WIRED_VARIABLE)
    return parse_size(given, WIRED_VARIABLE, "8GB, or 0 to wire nothing") if given else None


@dataclass(frozen=True)
class Device:
    """What MLX computes on: its memory in bytes, and what Metal says of it.

    `working_set` is how many bytes of the memory Metal recommends to use at most, `max_arrays` how many arrays there
    can be at once; None where there is no Metal.
    """

    memory: int
    working_set: int | None = None
    max_arrays: int | None = None

    @property
    def max_cached_arrays(self) -> int | None:
        """How many arrays the prompt cache may have: a quarter, so that completions under way never lack some."""
        return self.max_arrays // 4 if self.max_arrays is not None else None

    def plan(self, name: str, weights: int, choice: MemoryChoice = AUTOMATIC) -> MemoryPlan:
        """Return what a model with so many bytes of weights gets of the memory, as the user chose or as it needs.

        Raise InsufficientMemoryError for weights that the memory can't hold; warn of weights that barely fit.
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
                "%s is %s, but the GPU is to use at most %s; that much is wired.",
                WIRED_VARIABLE,
                human_size(wired),
                human_size(self.working_set),
            )
        needed = weights + prompt_cache + _WORK_BYTES if wired is None else wired
        return MemoryPlan(prompt_cache, min(self.working_set, needed))

    def _check(self, name: str, weights: int) -> None:
        """Raise InsufficientMemoryError for weights that the memory can't hold; warn of weights that barely fit."""
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
            "%s, and the GPU is to use at most %s: answers may be slow, or fail. %s",
            needed,
            human_size(working_set),
            remedy,
        )
