"""Prompts on their way into the model: a budget of tokens at a time, and whose turn it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.generate import PromptProcessingBatch
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from mlxk2.runner.prompt_cache import PromptCache, State, Tokens

# Shorter pieces of a prompt cost more to keep than to compute again.
_MIN_CACHED_TOKENS = 64
# One turn in so many goes to the prompt that came first, however many shorter ones come.
_OLDEST_EVERY = 4


@dataclass(eq=False)
class Reading:
    """A prompt that is being read, for all the rows that go on from it.

    Its last token is left out: that one gives the first of the answer. `cached` of its tokens need not be computed, as
    far as is known.
    """

    tokens: Tokens
    client: Hashable
    cached: int
    rows: list[int] = field(default_factory=list)
    state: State | None = None
    position: int = 0
    stops: tuple[int, ...] = ()

    @property
    def left(self) -> int:
        """How many tokens are likely to be left to read."""
        return len(self.tokens) - 1 - (self.position if self.state is not None else self.cached)

    @property
    def until_stop(self) -> int:
        """How many tokens there are to the next stop."""
        return next((stop for stop in self.stops if stop > self.position), len(self.tokens) - 1) - self.position


class Readings:
    """The prompts that wait or are half read, in the order they came; which of them are read next.

    The shortest goes first, counted with all that was read for its client since it came and with the client's shorter
    ones: neither long prompts nor many make another client wait. One turn in four goes to the oldest, so that each is
    read some day.
    """

    def __init__(self, *, together: bool) -> None:
        self._together = together
        self._waiting: dict[Tokens, Reading] = {}
        # How many tokens were read for each client that waits; a new client begins with the least of these.
        self._served: dict[Hashable, int] = {}
        self._turns = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def longest(self) -> int:
        """How many tokens the longest prompt has."""
        return max(map(len, self._waiting), default=0)

    def of(self, tokens: Tokens) -> Reading | None:
        """Return the reading of exactly these tokens."""
        return self._waiting.get(tokens)

    def add(self, reading: Reading) -> None:
        """Let a prompt wait for its turn."""
        self._waiting[reading.tokens] = reading
        self._served.setdefault(reading.client, min(self._served.values(), default=0))

    def remove(self, reading: Reading) -> None:
        """Forget a prompt that has been read, or that no row waits for."""
        del self._waiting[reading.tokens]
        if all(other.client != reading.client for other in self._waiting.values()):
            del self._served[reading.client]

    def turn(self, budget: int, begin: Callable[[Reading], None]) -> list[tuple[Reading, int]]:
        """Return what is read next, and how many tokens of each; `begin` is called for each before it is read.

        A piece of one prompt; or several to their ends, as long as they fit in the budget when padded to one length.
        """
        self._turns += 1
        order = self._in_order()
        if self._turns % _OLDEST_EVERY == 0:
            order.insert(0, next(iter(self._waiting.values())))
        first, *others = dict.fromkeys(order)
        begin(first)
        longest = min(first.until_stop, budget)
        chosen = [(first, longest)]
        for reading in others if self._together else ():
            if max(longest, reading.left) * (len(chosen) + 1) <= budget:
                begin(reading)
                piece = min(reading.until_stop, budget // (len(chosen) + 1))
                longest = max(longest, piece)
                chosen.append((reading, piece))
        for reading, piece in chosen:
            self._served[reading.client] += piece
        return chosen

    def _in_order(self) -> list[Reading]:
        by_client: dict[Hashable, list[Reading]] = {}
        for reading in self._waiting.values():
            by_client.setdefault(reading.client, []).append(reading)
        behind = [pair for client, readings in by_client.items() for pair in _behind(readings, self._served[client])]
        return [reading for _, reading in sorted(behind, key=lambda pair: pair[0])]


def _behind(readings: Sequence[Reading], served: int) -> Iterator[tuple[int, Reading]]:
    """Yield a client's prompts, each with how many tokens will have been read for it when that one is read."""
    for reading in sorted(readings, key=lambda reading: reading.left):
        served += reading.left
        yield served, reading


class Reader:
    """Reads prompts into states of the model, each once however many rows go on from it."""

    def __init__(self, model: Any, prompts: PromptCache) -> None:
        self._model = model
        self._prompts = prompts
        self._readings = Readings(together=_can_pad(model))

    def __len__(self) -> int:
        return len(self._readings)

    @property
    def longest(self) -> int:
        """How many tokens the longest prompt has that waits or is half read."""
        return self._readings.longest

    def add(self, row: int, tokens: Tokens, client: Hashable) -> Reading:
        """Let a row wait until these tokens are read."""
        reading = self._readings.of(tokens)
        if reading is None:
            known = self._prompts.find(tokens).length if self._prompts else 0
            reading = Reading(tokens, client, known)
            self._readings.add(reading)
        reading.rows.append(row)
        return reading

    def remove(self, row: int, reading: Reading) -> None:
        """Let a row wait no more; what was read for it alone is kept."""
        reading.rows.remove(row)
        if not reading.rows:
            self._readings.remove(reading)
            self._keep(reading)

    def next(self, budget: int) -> list[Reading]:
        """Read as many tokens as the budget has; return the prompts that are read now."""
        pieces = self._readings.turn(budget, self._begin)
        self._read([(reading, length) for reading, length in pieces if length])
        done = []
        for reading, length in pieces:
            reading.position += length
            if reading.position in reading.stops:
                self._keep(reading)
            if reading.left == 0:
                self._readings.remove(reading)
                done.append(reading)
        return done

    def _begin(self, reading: Reading) -> None:
        """Take what is known of a prompt by now, just before it is read."""
        if reading.state is not None:
            return
        if self._prompts:
            prefix = self._prompts.find(reading.tokens)
            reading.state, reading.position = prefix.state, prefix.length
            reading.stops = _stops(prefix.length, prefix.shared, len(reading.tokens) - 1)
        reading.cached = reading.position
        if reading.state is None:
            reading.state = make_prompt_cache(self._model)

    def _read(self, pieces: Sequence[tuple[Reading, int]]) -> None:
        states = [reading.state for reading, _ in pieces]
        tokens = [list(reading.tokens[reading.position : reading.position + length]) for reading, length in pieces]
        if len(pieces) == 1:
            # In place: a batch of one would be a copy of all that was read before.
            self._model(mx.array(tokens), cache=states[0])
            mx.eval([layer.state for layer in states[0] or ()])
            mx.clear_cache()
        elif pieces:
            batch = PromptProcessingBatch(self._model, list(range(len(pieces))), states)
            batch.prompt(tokens)
            for number, (reading, _) in enumerate(pieces):
                reading.state = batch.extract_cache(number)

    def _keep(self, reading: Reading) -> None:
        if self._prompts and reading.position and reading.state is not None:
            self._prompts.keep(reading.tokens[: reading.position], copy.deepcopy(reading.state))


def _stops(known: int, shared: int, length: int) -> tuple[int, ...]:
    """Return after how many tokens of a prompt, the last of which is not read, to stop in order to keep the state.

    At the end, for prompts that are the same or go on from there; and where an earlier prompt went on differently, as
    later ones may too.
    """
    stops = (shared, length)
    return tuple(stop for last, stop in zip((known, *stops), stops, strict=False) if stop - last >= _MIN_CACHED_TOKENS)


def _can_pad(model: Any) -> bool:
    """Whether prompts can be padded to one length: some recurrent models would take the padding for tokens."""
    return all(type(layer) in (KVCache, RotatingKVCache) for layer in make_prompt_cache(model))
