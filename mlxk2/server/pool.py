"""The model in memory, and its replacement by another one."""

from __future__ import annotations

import logging
import os

from mlxk2.errors import MlxkError, OperationError, ValidationError
from mlxk2.server.messages import Load, Loaded, LoadFailed, ModelKey
from mlxk2.server.worker import Worker


class ModelPool:
    """Keeps one model in memory: `key` is the model in memory, `loading` the one that is being loaded.

    Call the methods in the thread of the event loop.
    """

    def __init__(self, worker: Worker) -> None:
        self.key: ModelKey | None = None
        self.loading: ModelKey | None = None
        self._worker = worker
        self._vocabulary_size = 0

    def vocabulary_size(self, key: ModelKey) -> int | None:
        """Return the number of a model's tokens, or None if it is not in memory."""
        return self._vocabulary_size if key == self.key else None

    def begin_loading(self, key: ModelKey) -> None:
        """Load a model and drop the previous one; the worker reports the result."""
        self._worker.send(Load(key))
        self.loading = key

    def end_loading(self, report: Loaded | LoadFailed) -> MlxkError | None:
        """Record the result of loading a model; if it failed, return the error for the requests.

        After a failure the previous model is still in memory, unless it was already unloaded.
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
        # The adapter was chosen by the user who started the server, and clients must not see its path.
        logging.error(error.message)
        return OperationError(error.message.replace(adapter, os.path.basename(adapter)))
