"""Messages between the event loop and the worker: plain frozen values that name models by key and requests by id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mlxk2.errors import MlxkError
from mlxk2.runner.events import Event
from mlxk2.runner.request import GenerationRequest


class ModelKey(NamedTuple):
    """Which model, and with which LoRA adapter: its name, the folder of its files, and the folder of the adapter.

    Two equal keys mean the same model.
    """

    name: str
    path: str
    adapter: str | None = None


@dataclass(frozen=True)
class Load:
    """To the worker: load a model in the place of the previous one."""

    key: ModelKey


@dataclass(frozen=True)
class Submit:
    """To the worker: generate one sequence for each of these requests, which share an id."""

    id: int
    key: ModelKey
    requests: tuple[GenerationRequest, ...]


@dataclass(frozen=True)
class Cancel:
    """To the worker: stop the sequences of an id, if any are left."""

    id: int


@dataclass(frozen=True)
class Rest:
    """To the worker: if no sequence is left, give back the memory that is kept for the next steps."""


Command = Load | Submit | Cancel | Rest


@dataclass(frozen=True)
class Loaded:
    """From the worker: a model is in memory; its tokens are below `vocabulary_size`."""

    key: ModelKey
    vocabulary_size: int


@dataclass(frozen=True)
class LoadFailed:
    """From the worker: a model could not be loaded; the previous one may have been unloaded before that."""

    key: ModelKey
    error: MlxkError
    has_unloaded: bool


class SequenceEvent(NamedTuple):
    """From the worker: the next event of a sequence, which is that number of the requests of an id."""

    id: int
    number: int
    event: Event


Report = Loaded | LoadFailed | SequenceEvent
