"""Batches with mlx-lm's generators: decode sequences together if the model supports it, else one after another."""

from __future__ import annotations

import contextlib
import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import mlx.core as mx
from mlx_lm.generate import StopSequences, generate_step, generation_stream
from mlx_lm.models.cache import make_prompt_cache

from mlxk2.runner.mlx import sampler
from mlxk2.runner.mlx.decoding import LogprobReport, SequenceSampler, join, make_generator
from mlxk2.runner.mlx.prefill import ModelState, Prefill, Prefiller
from mlxk2.runner.prompt_cache import PromptCache, Tokens
from mlxk2.runner.request import GenerationRequest
from mlxk2.runner.sequences import NO_TOKEN, Reading, Step

_DECODING_SHARE = 0.25  # Seconds of decoding for each second of reading prompts.


def can_batch(model: Any) -> bool:
    """Return whether mlx-lm can put several sequences of this model into one cache; with chunked attention it can't."""
    return all(_can_merge(cache) for cache in make_prompt_cache(model))


def _can_merge(cache: Any) -> bool:
    return hasattr(cache, "merge") and all(map(_can_merge, getattr(cache, "caches", ())))


@dataclass
class _Entry:
    """A sequence of a batch: its request, the tokens that it continues, and the number of tokens that may still come.

    `prefill` reads the tokens; it is None after decoding has started.
    """

    request: GenerationRequest
    tokens: Tokens
    left: int
    prefill: Prefill | None

    @property
    def completed_count(self) -> int:
        """The number of tokens that the completion already has."""
        return len(self.tokens) - len(self.request.prompt)

    def processors(self) -> list[sampler.Processor]:
        """Return the logits processors of the sequence."""
        return sampler.processors(self.request.sampling, len(self.request.prompt))

    def start(self) -> ModelState | None:
        """Start decoding: return the state after all tokens except the last one."""
        assert self.prefill is not None
        state, self.prefill = self.prefill.state, None
        return state

    def report(self, sequence_id: int, length: int, seconds: float) -> Reading:
        """Return the progress of the prompt after `length` of its tokens were read in this time."""
        assert self.prefill is not None
        prompt = len(self.request.prompt)
        # The last token of the prompt is read when the first token of the completion is generated.
        done = prompt if self.prefill.left == 0 else min(self.prefill.position, prompt)
        # A prompt is computed for the first of its sequences; for the others it counts as cached.
        if sequence_id == self.prefill.sequences[0]:
            return Reading(sequence_id, done, min(self.prefill.cached, prompt), length, seconds)
        return Reading(sequence_id, done, min(len(self.tokens) - 1, prompt), 0, 0.0)


class _MLXBatch(ABC):
    """The sequences of a batch: first their prompts are read, then they wait for a free slot, then they are decoded."""

    stream: Any  # The stream on which MLX computes for this batch.

    def __init__(self, model: Any, prompts: PromptCache) -> None:
        self._prompts = prompts
        self._prefiller = Prefiller(model, prompts)
        self._sequences: dict[int, _Entry] = {}
        # Sequences whose prompts were read, and that wait for a free slot.
        self._ready: list[int] = []

    def insert(
        self, sequence_id: int, request: GenerationRequest, max_tokens: int, completion: Sequence[int] = ()
    ) -> None:
        """Add a sequence that continues after these tokens of its completion, up to `max_tokens` in total."""
        tokens = (*request.prompt, *completion) if completion else request.prompt
        prefill = self._prefiller.add(sequence_id, tokens, request.client)
        self._sequences[sequence_id] = _Entry(request, tokens, max_tokens - len(completion), prefill)

    def read_prompts(self, *, others_decode: bool) -> list[Reading]:
        """Read a budget of tokens of the prompts and return the progress; completely read sequences become ready."""
        start = time.perf_counter()
        turn = self._prefiller.next(others_decode=others_decode)
        seconds = time.perf_counter() - start
        self._ready += [each for prefill, _ in turn if prefill.left == 0 for each in prefill.sequences]
        read = [(each, length) for prefill, length in turn for each in prefill.sequences]
        return [self._sequences[each].report(each, length, seconds) for each, length in read]

    def remove(self, sequence_id: int) -> None:
        """Drop a sequence in any state: waiting, reading its prompt, or decoding."""
        entry = self._sequences.pop(sequence_id)
        if sequence_id in self._ready:
            self._ready.remove(sequence_id)
        elif entry.prefill is not None:
            self._prefiller.remove(sequence_id, entry.prefill)
        else:
            self.stop_decoding(sequence_id)

    @abstractmethod
    def stop_decoding(self, sequence_id: int) -> None:
        """Drop a sequence that is being decoded."""

    @abstractmethod
    def release(self) -> None:
        """Drop the generator."""

    def close(self) -> None:
        """Drop all sequences, and return their memory to the system."""
        # MLX's running computation can fail, and must not make the next batch fail.
        with contextlib.suppress(RuntimeError):
            mx.synchronize(self.stream)
        self._sequences.clear()
        self._ready.clear()
        self.release()
        del self._prefiller
        mx.clear_cache()


class ParallelBatch(_MLXBatch):
    """Sequences that are decoded together, each with its own sampler, processors and limits."""

    def __init__(self, model: Any, end_tokens: Collection[int], max_sequences: int, prompts: PromptCache) -> None:
        super().__init__(model, prompts)
        self._generator = make_generator(model, max_sequences)
        self.stream = self._generator.stream
        self._ends = StopSequences([(token,) for token in end_tokens])
        self._max_sequences = max_sequences
        self._decoding = 0
        # Seconds of decoding that are due before more prompts are read.
        self._debt = 0.0

    def next(self) -> list[Step | Reading]:
        """Read more of the prompts if it is their turn, then decode the next token of each ready sequence."""
        readings: list[Reading] = []
        with mx.stream(self.stream):
            has_room = self._decoding + len(self._ready) < self._max_sequences
            if self._prefiller and has_room and not (self._decoding and self._debt > 0):
                readings = self.read_prompts(others_decode=self._decoding > 0)
                self._debt = _DECODING_SHARE * max(reading.seconds for reading in readings)
            room = self._max_sequences - self._decoding
            joining, self._ready = self._ready[:room], self._ready[room:]
            if joining:
                self._start_decoding(joining)
        start = time.perf_counter()
        _, responses = self._generator.next()
        self._debt -= time.perf_counter() - start
        return [*readings, *map(self._step, responses)]

    def _start_decoding(self, sequence_ids: list[int]) -> None:
        entries = [self._sequences[sequence_id] for sequence_id in sequence_ids]
        join(
            self._generator,
            sequence_ids,
            [entry.start() for entry in entries],
            [entry.tokens for entry in entries],
            samplers=[SequenceSampler(entry.request, entry.completed_count) for entry in entries],
            logits_processors=[entry.processors() for entry in entries],
            stop_sequences=[self._ends] * len(entries),
            max_tokens=[entry.left for entry in entries],
        )
        self._decoding += len(entries)

    def _step(self, response: Any) -> Step:
        sequence_id, token = response.uid, response.token
        if response.finish_reason is not None:
            del self._sequences[sequence_id]
            self._decoding -= 1
            if self._prompts:
                self._prompts.keep(response.all_tokens, ModelState(response.prompt_cache))
        has_logprob = response.logprobs is not None and token != NO_TOKEN
        logprob = response.logprobs.read(token) if has_logprob else None
        return Step(sequence_id, token, response.finish_reason, logprob)

    def stop_decoding(self, sequence_id: int) -> None:
        """Drop a sequence that is being decoded; keep its state in the prompt cache."""
        self._decoding -= 1
        left = self._generator.remove([sequence_id], return_prompt_caches=bool(self._prompts))
        for state, tokens in left.values():
            self._prompts.keep(tokens, ModelState(state))

    def release(self) -> None:
        """Drop what decodes."""
        del self._generator


class _Current(NamedTuple):
    """The sequence that is being decoded: its id, its generator of tokens, and the number that may still come."""

    sequence_id: int
    tokens: Iterator[tuple[int, mx.array]]
    left: int


class SerialBatch(_MLXBatch):
    """Sequences that are decoded one after another, in the order in which their prompts were read."""

    stream = generation_stream

    def __init__(self, model: Any, end_tokens: Collection[int]) -> None:
        super().__init__(model, PromptCache(0))
        self._model = model
        self._ends = end_tokens
        self._current: _Current | None = None

    def next(self) -> list[Step | Reading]:
        """Return the next token of the current sequence; without one, read a budget of tokens of the prompts."""
        readings: list[Reading] = []
        if self._current is None and not self._ready:
            readings = self.read_prompts(others_decode=False)
        if self._current is None and self._ready:
            self._current = self._start_decoding(self._ready.pop(0))
        return [*readings, self._step(self._current)] if self._current is not None else [*readings]

    def _start_decoding(self, sequence_id: int) -> _Current:
        entry = self._sequences[sequence_id]
        before = mx.array(entry.tokens[:-1], dtype=mx.uint32)
        tokens = generate_step(
            mx.array(entry.tokens[-1:]),
            self._model,
            max_tokens=entry.left,
            sampler=sampler.Sampler(entry.request.sampling, entry.completed_count),
            logits_processors=[sampler.WithEarlierTokens(before, processor) for processor in entry.processors()],
            # Copy the state, because other sequences can continue from it.
            prompt_cache=copy.deepcopy(entry.start()),
        )
        return _Current(sequence_id, tokens, entry.left)

    def _step(self, current: _Current) -> Step:
        entry = self._sequences[current.sequence_id]
        count = entry.request.likeliest_count
        token, logprobs = next(current.tokens)
        if token == 0 and mx.isnan(logprobs[token]).item():
            token = NO_TOKEN
        is_last = current.left == 1
        reason: Literal["stop", "length"] | None = "stop" if token in self._ends else "length" if is_last else None
        logprob = None
        if token != NO_TOKEN and count is not None:
            logprob = LogprobReport(logprobs[None], mx.array([token]), [count]).sequences[0].read(token)
        self._current = current._replace(left=current.left - 1)
        if reason:
            self.remove(current.sequence_id)
        return Step(current.sequence_id, token, reason, logprob)

    def stop_decoding(self, sequence_id: int) -> None:  # noqa: ARG002 - only one is decoded
        """Drop the sequence that is being decoded."""
        self._current = None

    def release(self) -> None:
        """Drop what decodes."""
        self._current = None
