"""The functions that samplers use; an echo never samples."""

from __future__ import annotations

from typing import Any


def apply_top_p(logprobs: Any, top_p: float) -> Any:
    """Fail: there are no probabilities."""
    raise NotImplementedError


apply_min_p = apply_top_k = apply_top_p
make_frequency_penalty = make_presence_penalty = make_repetition_penalty = lambda penalty, window: apply_top_p
