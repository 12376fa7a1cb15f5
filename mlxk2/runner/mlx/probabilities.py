"""How probable tokens were: one computation for all the rows of a step that report it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import mlx.core as mx

from mlxk2.runner.sequences import Likeliest, TokenLogprob


class Report:
    """The logprobs of the tokens [rows] that were chosen by these logits [rows, vocabulary], and of the likeliest ones.

    Nothing is computed before `arrays` are; `rows` then have the results.
    """

    def __init__(self, logits: mx.array, chosen: mx.array, counts: Sequence[int]) -> None:
        # In 16 bits the sum would be rounded to an eighth.
        logits = logits.astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        most = min(max(counts), logits.shape[-1])
        self._chosen = mx.take_along_axis(logprobs, chosen[:, None], axis=-1)[:, 0]
        likeliest = mx.argpartition(-logprobs, kth=max(most - 1, 0), axis=-1)[:, :most]
        values = mx.take_along_axis(logprobs, likeliest, axis=-1)
        order = mx.argsort(-values, axis=-1)
        self._likeliest = mx.take_along_axis(likeliest, order, axis=-1)
        self._values = mx.take_along_axis(values, order, axis=-1)
        self._computed: tuple[list[float], list[list[int]], list[list[float]]] | None = None
        self.rows = [ReportedRow(self, row, count) for row, count in enumerate(counts)]

    @property
    def arrays(self) -> list[mx.array]:
        """What is to be computed."""
        return [self._chosen, self._likeliest, self._values]

    def told(self, row: int, token: int, count: int) -> TokenLogprob:
        """Return what is known of a row's token."""
        if self._computed is None:
            # Once for all rows: each look into an array waits for MLX.
            self._computed = cast(
                tuple[list[float], list[list[int]], list[list[float]]], tuple(array.tolist() for array in self.arrays)
            )
        chosen, likeliest, values = self._computed
        return TokenLogprob(token, chosen[row], Likeliest(likeliest[row][:count], values[row][:count]))


class ReportedRow(NamedTuple):
    """A row of a report, and how many of the likeliest tokens it reports."""

    report: Report
    row: int
    most: int

    def told(self, token: int) -> TokenLogprob:
        """Return what is known of the row's token."""
        return self.report.told(self.row, token, self.most)
