"""The models in memory: which they are, and how another one takes its place."""

from __future__ import annotations

import logging
import os

from mlxk2.errors import MlxkError, OperationError, ValidationError
from mlxk2.server.messages import Load, Loaded, LoadFailed, ModelKey
from mlxk2.server.worker import Worker


class ModelPool:
    """Keep one model in memory; `key` says which one, `loading` which one is being loaded.

    Its methods are for the thread of the event loop.
    """

    def __init__(self, worker: Worker) -> None:
        self.key: ModelKey | None = None
        self.loading: ModelKey | None = None
        self._worker = worker
        self._vocabulary_size = 0

    def vocabulary_size(self, key: ModelKey) -> int | None:
        """Return how many tokens a model knows, if it is in memory."""
        return self._vocabulary_size if key == self.key else None

    def begin_loading(self, key: ModelKey) -> None:
        """Load a model in the place of the previous one; a report says how that ends."""
        self._worker.send(Load(key))
        self.loading = key

    def end_loading(self, report: Loaded | LoadFailed) -> MlxkError | None:
        """Note how loading a model has ended; return the error for its requests if it has failed.

        Then the previous model is still in memory, unless its memory was needed already.
        """
        self.loading = None
        if isinstance(report, Loaded):
            self.key, self._vocabulary_size = report.key, report.vocabulary_size
            return None
        if report.has_unloaded:
            self.key = None
        error, adapter = report.error, report.key.adapter
        if adapter is None or not isinstance(error, ValidationError):
            return error
        # The user who started the server chose the adapter; clients must not see its path.
        logging.error(error.message)
        return OperationError(error.message.replace(adapter, os.path.basename(adapter)))
