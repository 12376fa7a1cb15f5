"""A model that completes one prompt at a time, for a person or a script."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from mlxk2.chat.printer import Interrupt
from mlxk2.errors import OperationCancelled
from mlxk2.runner.events import (
    Channel,
    Event,
    Finished,
    FinishReason,
    PromptProgress,
    TextDelta,
    Timings,
    Usage,
)
from mlxk2.runner.memory import MemoryChoice
from mlxk2.runner.mlx import loader
from mlxk2.runner.mlx.device import release_freed_memory
from mlxk2.runner.prompt.confined import Starter
from mlxk2.runner.prompt.prompter import Message, Prompter
from mlxk2.runner.request import GenerationRequest, Sampling
from mlxk2.runner.runner import MLXRunner
from mlxk2.runner.sequences import Backend
from mlxk2.sleep import NoSleep

_CHECK_SECONDS = 0.1  # Between two checks for Ctrl-C, while MLX reads the prompt.


@dataclass(frozen=True)
class Completion:
    """The text that a model wrote for one prompt, why it ended, and its counts and times."""

    text: str
    reasoning: str | None
    finish_reason: FinishReason
    usage: Usage
    timings: Timings

    @property
    def statistics(self) -> str:
        """The counts, times and speeds in one line."""
        usage, timings = self.usage, self.timings
        took = f"in {timings.total_seconds:.2f} s"
        parts = [f"prompt: {usage.prompt_tokens} tokens", f"answer: {usage.completion_tokens} tokens {took}"]
        if timings.first_token_seconds is not None:
            parts.append(f"the first after {timings.first_token_seconds:.2f} s")
        if timings.prompt_tokens_per_second is not None:
            parts.append(f"prompt {timings.prompt_tokens_per_second:.1f} tokens/s")
        if timings.generated_tokens_per_second is not None:
            parts.append(f"answer {timings.generated_tokens_per_second:.1f} tokens/s")
        return ", ".join([*parts, f"end: {self.finish_reason}"])


class Assistant:
    """A model in memory, with the options of its completions; its own thread loads it and computes.

    MLX can't be interrupted while it computes. So if Ctrl-C comes while the prompt is read, the completion ends at
    once, and the thread starts the next completion when it has finished. If `converses` is true, keep the computed
    state of the prompt, so that the next turn computes only the new tokens. Free the rest of the memory while the user
    types.
    """

    def __init__(
        self,
        model: Backend,
        prompter: Prompter,
        sampling: Sampling,
        max_tokens: int | None,
        *,
        converses: bool = False,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        """Compute in the thread that has loaded the model, or in a new one."""
        self._runner = MLXRunner(model, prompt_cache_bytes=model.prompt_cache_bytes if converses else 0)
        self._thread = thread or _thread()
        self._converses = converses
        self._prompter = prompter
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._no_sleep = NoSleep()

    @classmethod
    def load(
        cls,
        folder: str,
        *,
        name: str,
        adapter: str | None,
        use_template: bool,
        sampling: Sampling,
        max_tokens: int | None,
        context: int | None,
        starter: Starter,
        wired_limit: int | None = None,
        converses: bool = False,
    ) -> Assistant:
        """Load the model in a folder; raise the same errors as `loader.load`."""
        memory = MemoryChoice(prompt_cache=None if converses else 0, wired=wired_limit)
        thread = _thread()
        loading = thread.submit(
            loader.load, folder, adapter, name=name, memory=memory, starter=starter, context=context
        )
        try:
            model = loading.result()
        except BaseException:
            thread.shutdown(wait=False)
            raise
        prompter = Prompter(model.tokenizer, model.vocabulary, context=model.context_length, use_template=use_template)
        return cls(model, prompter, sampling, max_tokens, converses=converses, thread=thread)

    def complete(self, messages: Sequence[Message], show: Callable[[Event], None]) -> Completion:
        """Continue a conversation and show every event as it comes; Ctrl-C ends the completion, not the program.

        If Ctrl-C comes before the prompt is tokenized, return a completion without tokens.
        """
        texts: dict[Channel, list[str]] = {"content": [], "reasoning": []}
        began, prompt_tokens = time.perf_counter(), 0
        with Interrupt() as interrupted, self._no_sleep.hold():
            try:
                prompt = self._prompter.cancellable(interrupted).chat(messages)
                prompt_tokens = len(prompt.tokens)
                request = GenerationRequest(prompt.tokens, self._max_tokens, self._sampling, thinking=prompt.thinking)
                with closing(self._stream(request, interrupted)) as events:
                    for event in events:
                        show(event)
                        if isinstance(event, TextDelta):
                            texts[event.channel].append(event.text)
                if self._converses:
                    self._thread.submit(release_freed_memory)
            except OperationCancelled:
                timings = Timings(time.perf_counter() - began, None, 0, 0.0, 0, 0.0)
                return Completion("", None, "interrupted", Usage(prompt_tokens, 0, 0), timings)
        # A stream without an error always ends with this event.
        assert isinstance(event, Finished)
        return Completion(
            text="".join(texts["content"]),
            reasoning="".join(texts["reasoning"]) or None,
            finish_reason=event.reason,
            usage=event.usage,
            timings=event.timings,
        )

    def close(self) -> None:
        """Let the thread end after its current computation."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _stream(self, request: GenerationRequest, interrupted: Callable[[], bool]) -> Generator[Event, None, None]:
        """Yield the events of a completion; raise OperationCancelled if its prompt is being read at Ctrl-C."""
        stream = self._runner.stream(request, interrupted)
        is_reading = True
        try:
            while True:
                step = self._thread.submit(next, stream, None)
                while not _has_ended(step):
                    if is_reading and interrupted():
                        raise OperationCancelled("Interrupted.")
                event = step.result()
                if event is None:
                    return
                is_reading = isinstance(event, PromptProgress)
                yield event
        finally:
            ending = self._thread.submit(stream.close)
            if step.done():
                ending.result()


def _has_ended(step: Future[Event | None]) -> bool:
    """Wait a moment for the end of a step, and return whether it has ended."""
    try:
        step.exception(timeout=_CHECK_SECONDS)
    except TimeoutError:
        return False
    return True


def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="mlx")
