"""A model that completes one prompt at a time, for a person or a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlxk2.chat.printer import Interrupt
from mlxk2.errors import InterruptedByUser
from mlxk2.runner.events import Channel, Event, Finished, FinishReason, TextDelta, Timings, Usage
from mlxk2.runner.memory import MemoryChoice
from mlxk2.runner.mlx import loader
from mlxk2.runner.mlx.device import release_freed_memory
from mlxk2.runner.prompt.confined import Starter
from mlxk2.runner.prompt.prompter import Message, Prompter
from mlxk2.runner.request import GenerationRequest, Sampling
from mlxk2.runner.runner import MLXRunner
from mlxk2.runner.sequences import Backend
from mlxk2.sleep import NoSleep


@dataclass(frozen=True)
class Completion:
    """What a model wrote for one prompt, why it ended, and its counts and times."""

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
    """A model in memory, with the options of its completions.

    An assistant that `converses` retains what it computed, so that the next turn of a conversation computes only what
    is new. It gives back the rest of the memory while the user types.
    """

    def __init__(
        self, model: Backend, prompter: Prompter, sampling: Sampling, max_tokens: int | None, *, converses: bool = False
    ) -> None:
        self._runner = MLXRunner(model, prompt_cache_bytes=model.prompt_cache_bytes if converses else 0)
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
        """Load the model of a folder; raise what `loader.load` raises."""
        memory = MemoryChoice(prompt_cache=None if converses else 0, wired=wired_limit)
        model = loader.load(folder, adapter, name=name, memory=memory, starter=starter, context=context)
        prompter = Prompter(model.tokenizer, model.vocabulary, context=model.context_length, use_template=use_template)
        return cls(model, prompter, sampling, max_tokens, converses=converses)

    def complete(self, messages: Sequence[Message], show: Callable[[Event], None]) -> Completion:
        """Continue a conversation, and show every event as it comes; Ctrl-C ends the completion, not the program.

        If that happens before the tokens of the prompt are known, it has no tokens.
        """
        texts: dict[Channel, list[str]] = {"answer": [], "reasoning": []}
        with Interrupt() as interrupted, self._no_sleep.hold():
            try:
                prompt = self._prompter.cancellable(interrupted).chat(messages)
            except InterruptedByUser:
                return Completion("", None, "interrupted", Usage(0, 0, 0), Timings(0.0, None, 0, 0.0, 0, 0.0))
            request = GenerationRequest(prompt.tokens, self._max_tokens, self._sampling, thinking=prompt.thinking)
            for event in self._runner.stream(request, interrupted):
                show(event)
                if isinstance(event, TextDelta):
                    texts[event.channel].append(event.text)
            if self._converses:
                release_freed_memory()
        # A stream that ends without an error ends with this event.
        assert isinstance(event, Finished)
        return Completion(
            text="".join(texts["answer"]),
            reasoning="".join(texts["reasoning"]) or None,
            finish_reason=event.reason,
            usage=event.usage,
            timings=event.timings,
        )
