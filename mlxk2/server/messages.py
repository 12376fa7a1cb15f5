"""Messages between the event loop and the worker: frozen values that refer to models by key and to requests by id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mlxk2.errors import MlxkError
from mlxk2.runner.events import Event
from mlxk2.runner.request import GenerationRequest


class ModelKey(NamedTuple):
    """The key of a model with its LoRA adapter: its name, the folder of its files, and the folder of the adapter.

    Equal keys mean the same model.
    """

    name: str
    path: str
    adapter: str | None = None


@dataclass(frozen=True)
class Load:
    """To the worker: load a model and drop the previous one."""

    key: ModelKey


@dataclass(frozen=True)
class Submit:
    """To the worker: generate one sequence for each of these requests; all of them have this id."""

    id: int
    key: ModelKey
    requests: tuple[GenerationRequest, ...]


@dataclass(frozen=True)
class Cancel:
    """To the worker: stop the sequences of an id that have not ended."""

    id: int


@dataclass(frozen=True)
class Rest:
    """To the worker: if all sequences have ended, return freed memory to the system."""


Command = Load | Submit | Cancel | Rest


@dataclass(frozen=True)
class Loaded:
    """From the worker: a model is in memory; its token ids are smaller than `vocabulary_size`."""

    key: ModelKey
    vocabulary_size: int


@dataclass(frozen=True)
class LoadFailed:
    """From the worker: a model could not be loaded; `has_unloaded` is true if no model is in memory now."""

    key: ModelKey
    error: MlxkError
    has_unloaded: bool


class SequenceEvent(NamedTuple):
    """From the worker: the next event of a sequence; `number` is its position among the requests of the id."""

    id: int
    number: int
    event: Event


Report = Loaded | LoadFailed | SequenceEvent
