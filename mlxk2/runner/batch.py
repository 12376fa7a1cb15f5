"""One batch of rows on mlx-lm's generator: rows join and leave at token boundaries."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

from mlx_lm.generate import BatchGenerator, StopSequences

from mlxk2.runner import sampling
from mlxk2.runner.params import GenerationRequest
from mlxk2.runner.runner import Step


class Batch:
    """The rows that are generated together, each with its own sampler, processors and limits."""

    def __init__(self, model: Any, end_tokens: Collection[int]) -> None:
        self._generator = BatchGenerator(model)
        self._ends = StopSequences([(token,) for token in end_tokens])

    def insert(self, request: GenerationRequest, max_tokens: int) -> int:
        """Add a row; return its number."""
        (row,) = self._generator.insert(
            [list(request.prompt)],
            max_tokens=[max_tokens],
            samplers=[sampling.sampler(request.sampling)],
            logits_processors=[sampling.processors(request.sampling, len(request.prompt))],
            stop_sequences=[self._ends],
        )
        return int(row)

    def next(self) -> list[Step]:
        """Process the next part of the prompts, or the next token of every row; the list may be empty."""
        _, responses = self._generator.next()
        return [Step(response.uid, response.token, response.finish_reason) for response in responses]

    def remove(self, row: int) -> None:
        """Drop a row, whether it is waiting, in its prompt or in its answer."""
        self._generator.remove([row])

    def close(self) -> None:
        """Give back what the generator has reserved."""
        with contextlib.suppress(RuntimeError):
            self._generator.close()
