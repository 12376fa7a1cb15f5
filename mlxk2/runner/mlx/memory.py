"""The memory of the machine that models run on: what one may take, what stays wired, what is given back."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from mlxk2.errors import InsufficientMemoryError, ModelNotRunnableError
from mlxk2.formatting import human_size
from mlxk2.runner.limits import WIRED_VARIABLE
from mlxk2.runner.mlx import cpu

# Beside weights and prompt cache: the answers under way, and what MLX computes with.
_WORK_BYTES = 4 * 10**9
# Of the working set; beyond it, macOS begins to move memory of the GPU about.
_GOOD_SHARE = 0.9
# Of the memory, that macOS lets the GPU have.
_MOST_OF_MEMORY = 15 / 16
_MIB = 1 << 20


class Chosen(NamedTuple):
    """What the user chose in bytes; None for what suits the model."""

    prompt_cache: int | None = None
    wired: int | None = None


NOTHING_CHOSEN = Chosen()


class Plan(NamedTuple):
    """How many bytes to keep of what was computed for earlier prompts, and how many are to stay wired."""

    prompt_cache: int
    wired: int


@dataclass(frozen=True)
class Device:
    """What MLX computes on: its memory in bytes, and what Metal says of it.

    `working_set` is how much of the memory Metal recommends to use at most, `max_arrays` how many arrays there can be
    at once; None where there is no Metal.
    """

    memory: int
    working_set: int | None = None
    max_arrays: int | None = None

    @classmethod
    def current(cls) -> Device:
        """Return the device that MLX computes on; raise ModelNotRunnableError where MLX can't reach its GPU."""
        try:
            info = mx.device_info()
        except RuntimeError as fault:
            reason = " ".join(str(fault).split()).rstrip(".")
            hint = "Start mlxk2 outside of the sandbox or virtual machine that it runs in."
            raise ModelNotRunnableError(f"MLX can't use a GPU here: {reason}.", hint=hint) from fault
        working_set = info.get("max_recommended_working_set_size")
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(
            # The key says the memory of the machine only where Metal does; CUDA can use that of the host.
            memory=int(info.get("memory_size") or physical) if working_set else physical,
            working_set=int(working_set) if working_set else None,
            max_arrays=int(info["resource_limit"]) if "resource_limit" in info else None,
        )

    @property
    def cached_arrays(self) -> int | None:
        """How many arrays may be kept for later prompts: a quarter, so that answers under way never lack some."""
        return self.max_arrays // 4 if self.max_arrays is not None else None

    def plan(self, name: str, weights: int, chosen: Chosen = NOTHING_CHOSEN) -> Plan:
        """Return what a model with so many bytes of weights gets of the memory, as the user chose or as it needs.

        Raises InsufficientMemoryError for weights that the memory can't hold; those that barely fit get a warning.
        """
        self._check(name, weights)
        free = int(_GOOD_SHARE * (self.working_set or self.memory)) - weights
        prompt_cache, wired = chosen
        if prompt_cache is None:
            prompt_cache = max(min(self.memory // 8, free // 2), 0)
        if self.working_set is None:
            return Plan(prompt_cache, 0)
        if wired is not None and wired > self.working_set:
            logging.getLogger(__name__).warning(
                "%s is %s, but the GPU is to use at most %s; that much is wired.",
                WIRED_VARIABLE, human_size(wired), human_size(self.working_set),
            )  # fmt: skip
        needed = weights + prompt_cache + _WORK_BYTES if wired is None else wired
        return Plan(prompt_cache, min(self.working_set, needed))

    def _check(self, name: str, weights: int) -> None:
        needed = f"The weights of {name} need {human_size(weights)} of memory"
        if weights > self.memory:
            of_gpu = f" ({human_size(self.working_set)} of it for the GPU)" if self.working_set else ""
            raise InsufficientMemoryError(
                f"{needed}, but there are only {human_size(self.memory)}{of_gpu}. "
                "Choose a smaller or more strongly quantized model."
            )
        if self.working_set and weights > _GOOD_SHARE * self.working_set:
            logging.getLogger(__name__).warning(
                "%s, and the GPU is to use at most %s: answers may be slow, or fail. %s",
                needed, human_size(self.working_set), self._remedy(weights, self.working_set),
            )  # fmt: skip

    def _remedy(self, weights: int, working_set: int) -> str:
        smaller = "hoose a smaller or more strongly quantized model."
        wanted = min((weights + _WORK_BYTES) / _GOOD_SHARE, self.memory * _MOST_OF_MEMORY)
        if wanted <= working_set:
            return f"C{smaller}"
        command = f"sudo sysctl iogpu.wired_limit_mb={int(wanted) // _MIB}"
        return f"`{command}` lets it use more until the next restart; or c{smaller}"


@contextmanager
def wired(limit: int) -> Iterator[None]:
    """Wire up to this many bytes from now on, which the GPU then reaches at once; wire none if what is inside fails.

    To be used only while nothing is computed. With 0 the limit is never touched.
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


def give_back() -> None:
    """Return to the system what MLX and the C library keep of freed memory, for a process that is at rest."""
    mx.clear_cache()
    cpu.trim()
