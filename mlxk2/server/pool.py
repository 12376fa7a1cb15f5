"""The model in memory: which one it is, and how another one takes its place."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from mlxk2.errors import MlxkError, ModelError, OperationError, ValidationError
from mlxk2.runner.sequences import Backend
from mlxk2.server.worker import Worker


class ModelKey(NamedTuple):
    """Which model, and with which LoRA adapter: its name, the folder of its files, and the folder of the adapter.

    Two equal keys mean the same model.
    """

    name: str
    path: str
    adapter: str | None = None


# Load a model. Call the function that is passed in before the memory of the previous model is needed.
LoadModel = Callable[[ModelKey, Callable[[], None]], Backend]


class ModelPool:
    """Keep one model in memory; `key` says which one, `loading` which one is being loaded.

    Its methods are for the thread of the event loop.
    """

    def __init__(self, load: LoadModel, worker: Worker) -> None:
        self.key: ModelKey | None = None
        self.loading: ModelKey | None = None
        self._load_model = load
        self._worker = worker

    def get(self, key: ModelKey) -> Backend | None:
        """Return a model if it is in memory."""
        return self._worker.model if key == self.key else None

    async def load(self, key: ModelKey) -> None:
        """Load a model in the place of the previous one; raise an MlxkError if that fails.

        After an error the previous model is still in memory, unless its memory was needed already.
        """
        self.loading = key
        try:
            await self._worker.load(partial(self._load_model, key))
            self.key = key
        except ValidationError as error:
            if key.adapter is None:
                raise
            # The user who started the server chose the adapter; clients must not see its path.
            logging.error(error.message)
            raise OperationError(error.message.replace(key.adapter, os.path.basename(key.adapter))) from error
        except MlxkError:
            raise
        except Exception as fault:
            logging.error("Loading %s failed", key.name, exc_info=fault)
            raise ModelError(f"{key.name} can't be loaded: {fault}") from fault
        finally:
            if self._worker.model is None:
                self.key = None
            self.loading = None
