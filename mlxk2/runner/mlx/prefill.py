"""Read prompts into the model, a budget of tokens at a time, and choose which prompts to read next."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.generate import PromptProcessingBatch
from mlx_lm.models.cache import (
    KVCache,
    RotatingKVCache,
    can_trim_prompt_cache,
    make_prompt_cache,
    trim_prompt_cache,
)

from mlxk2.runner.prompt_cache import PromptCache, Tokens

_MIN_CACHED_TOKENS = 64  # Shorter prefixes cost more to store than to compute again.
_OLDEST_EVERY = 4  # Every fourth turn goes to the oldest prompt, however many shorter ones arrive.
_BUDGET_TOKENS = 512  # Read so many tokens of prompts, then decode the next tokens of the other sequences.
# On a GPU, a larger budget takes less time in total, but other sequences wait. On the CPU, a smaller one is as fast.
_BUDGET_ALONE_ON_GPU = 2048
_BUDGET_ON_CPU = 256
_LONG_PROMPT_TOKENS = 1 << 14  # For longer prompts, a large budget needs gigabytes of memory and saves no time.


def prefill_budget(*, others_decode: bool, longest: int) -> int:
    """Return how many tokens of prompts to read now; `longest` is the length of the longest prompt in tokens.

    After that, the other sequences get their next tokens, and a request can be cancelled.
    """
    if mx.default_device() == mx.cpu:
        return _BUDGET_ON_CPU
    return _BUDGET_TOKENS if others_decode or longest > _LONG_PROMPT_TOKENS else _BUDGET_ALONE_ON_GPU


class ModelState(list[Any]):
    """The state of a model after some tokens: mlx-lm's cache of each layer."""

    @property
    def nbytes(self) -> int:
        """The size of the state in bytes."""
        return sum(layer.nbytes for layer in self)

    @property
    def arrays(self) -> int:
        """The number of arrays of the state."""
        return sum(isinstance(leaf, mx.array) for _, leaf in tree_flatten([layer.state for layer in self]))

    @property
    def is_trimmable(self) -> bool:
        """Whether the last tokens can be removed from the state."""
        return bool(can_trim_prompt_cache(self))

    def trim(self, count: int) -> None:
        """Remove the last `count` tokens from the state."""
        trim_prompt_cache(self, count)

    def detach(self) -> None:
        """Copy the arrays if they are slices of a batch's arrays, which would keep the whole batch in memory."""
        for layer in self:
            layer.state = tree_map(_copy_slice, layer.state)
        mx.eval([layer.state for layer in self])


def _copy_slice(leaf: Any) -> Any:
    return mx.contiguous(leaf) if isinstance(leaf, mx.array) else leaf


@dataclass(eq=False)
class Prefill:
    """A prompt that is being read, for all sequences that continue it.

    Its last token is not read here, because it gives the first token of the completion. The first `cached` tokens are
    probably in the prompt cache.
    """

    tokens: Tokens
    client: Hashable
    cached: int
    sequences: list[int] = field(default_factory=list)
    state: ModelState | None = None
    position: int = 0
    stops: tuple[int, ...] = ()

    @property
    def left(self) -> int:
        """The number of tokens that probably must still be read."""
        return len(self.tokens) - 1 - (self.position if self.state is not None else self.cached)

    @property
    def until_stop(self) -> int:
        """The number of tokens until the next stop."""
        return next((stop for stop in self.stops if stop > self.position), len(self.tokens) - 1) - self.position


class PrefillQueue:
    """The prompts that wait or are partly read, in the order of their arrival; the queue chooses which to read next.

    The prompt with the smallest total is first: its own tokens, plus the tokens already read for its client, plus those
    of the client's shorter prompts. So neither long prompts nor many prompts make another client wait. Every fourth
    turn goes to the oldest prompt, so that each prompt is read at some time.
    """

    def __init__(self, *, can_pad: bool) -> None:
        self._can_pad = can_pad
        self._waiting: dict[Tokens, Prefill] = {}
        # The tokens that were read for each waiting client; a new client begins with the smallest of these numbers.
        self._served: dict[Hashable, int] = {}
        self._turns = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def longest(self) -> int:
        """The number of tokens of the longest prompt."""
        return max(map(len, self._waiting), default=0)

    def find(self, tokens: Tokens) -> Prefill | None:
        """Return the prefill of exactly these tokens, or None."""
        return self._waiting.get(tokens)

    def add(self, prefill: Prefill) -> None:
        """Let a prompt wait for its turn."""
        self._waiting[prefill.tokens] = prefill
        self._served.setdefault(prefill.client, min(self._served.values(), default=0))

    def remove(self, prefill: Prefill) -> None:
        """Remove a prompt that was read completely, or that no sequence needs any more."""
        del self._waiting[prefill.tokens]
        if all(other.client != prefill.client for other in self._waiting.values()):
            del self._served[prefill.client]

    def take_turn(self, budget: int, begin: Callable[[Prefill], None]) -> list[tuple[Prefill, int]]:
        """Choose the prompts to read next, with numbers of tokens; call `begin` for each prompt before it is read.

        Choose some tokens of one prompt, or several whole prompts if they fit the budget when padded to one length.
        """
        self._turns += 1
        order = self._in_order()
        if self._turns % _OLDEST_EVERY == 0:
            order.insert(0, next(iter(self._waiting.values())))
        first, *others = dict.fromkeys(order)
        begin(first)
        longest = min(first.until_stop, budget)
        chosen = [(first, longest)]
        for prefill in others if self._can_pad else ():
            if max(longest, prefill.left) * (len(chosen) + 1) <= budget:
                begin(prefill)
                length = min(prefill.until_stop, budget // (len(chosen) + 1))
                longest = max(longest, length)
                chosen.append((prefill, length))
        for prefill, length in chosen:
            self._served[prefill.client] += length
        return chosen

    def _in_order(self) -> list[Prefill]:
        """Return the prompts, sorted by the tokens that are read for their client when they are finished."""
        by_client: dict[Hashable, list[Prefill]] = {}
        for prefill in self._waiting.values():
            by_client.setdefault(prefill.client, []).append(prefill)
        totals: dict[Prefill, int] = {}
        for client, prefills in by_client.items():
            served = self._served[client]
            for prefill in sorted(prefills, key=lambda prefill: prefill.left):
                served += prefill.left
                totals[prefill] = served
        return sorted(totals, key=totals.__getitem__)


class Prefiller:
    """Reads prompts into states of the model; reads a prompt once even if several sequences continue it."""

    def __init__(self, model: Any, prompts: PromptCache) -> None:
        self._model = model
        self._prompts = prompts
        # Some recurrent models would treat the padding as tokens.
        layers = make_prompt_cache(model)
        self._queue = PrefillQueue(can_pad=all(type(layer) in (KVCache, RotatingKVCache) for layer in layers))

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, sequence_id: int, tokens: Tokens, client: Hashable) -> Prefill:
        """Let a sequence wait until these tokens are read."""
        prefill = self._queue.find(tokens)
        if prefill is None:
            known = self._prompts.find(tokens).length if self._prompts else 0
            prefill = Prefill(tokens, client, known)
            self._queue.add(prefill)
        prefill.sequences.append(sequence_id)
        return prefill

    def remove(self, sequence_id: int, prefill: Prefill) -> None:
        """Remove a waiting sequence; if no other sequence needs the prompt, keep its state in the prompt cache."""
        prefill.sequences.remove(sequence_id)
        if not prefill.sequences:
            self._queue.remove(prefill)
            self._keep(prefill)

    def next(self, *, others_decode: bool) -> list[tuple[Prefill, int]]:
        """Read as many tokens as the budget allows; return the prompts that were read, with their numbers of tokens."""
        budget = prefill_budget(others_decode=others_decode, longest=self._queue.longest)
        chosen = self._queue.take_turn(budget, self._begin)
        unread = [(prefill, length) for prefill, length in chosen if length]
        states = [prefill.state for prefill, _ in unread]
        tokens = [list(prefill.tokens[prefill.position : prefill.position + length]) for prefill, length in unread]
        if len(unread) == 1:
            # Read in place, because a batch of one prompt would copy its whole state.
            self._model(mx.array(tokens), cache=states[0])
            mx.eval([layer.state for layer in states[0] or ()])
            mx.clear_cache()
        elif unread:
            batch = PromptProcessingBatch(self._model, list(range(len(unread))), states)
            batch.prompt(tokens)
            for number, (prefill, _) in enumerate(unread):
                prefill.state = ModelState(batch.extract_cache(number))
        for prefill, length in chosen:
            prefill.position += length
            if prefill.position in prefill.stops:
                self._keep(prefill)
            if prefill.left == 0:
                self._queue.remove(prefill)
        return chosen

    def _begin(self, prefill: Prefill) -> None:
        """Before a prompt is read, take its known state from the prompt cache, and choose where to store new states.

        Store a state at the end, for later prompts that begin with this one, and at the position where an earlier
        prompt continued differently, because later prompts can do so too.
        """
        if prefill.state is not None:
            return
        if self._prompts:
            prefix = self._prompts.find(prefill.tokens)
            assert prefix.state is None or isinstance(prefix.state, ModelState)
            prefill.state, prefill.position = prefix.state, prefix.length
            stops = (prefix.shared, len(prefill.tokens) - 1)
            before = (prefix.length, prefix.shared)
            prefill.stops = tuple(
                stop for last, stop in zip(before, stops, strict=True) if stop - last >= _MIN_CACHED_TOKENS
            )
        prefill.cached = prefill.position
        if prefill.state is None:
            prefill.state = ModelState(make_prompt_cache(self._model))

    def _keep(self, prefill: Prefill) -> None:
        if self._prompts and prefill.position and prefill.state is not None:
            self._prompts.keep(prefill.tokens[: prefill.position], copy.deepcopy(prefill.state))
