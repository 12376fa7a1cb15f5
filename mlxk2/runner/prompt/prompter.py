"""From messages to the token ids of a prompt."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NotRequired, TypedDict

from mlxk2.errors import ModelError, ValidationError
from mlxk2.runner.output.text import Vocabulary
from mlxk2.runner.prompt.confined import Cancelled
from mlxk2.runner.prompt.tokenizer import DecodeError, RefusedError
from mlxk2.runner.request import too_long


class Message(TypedDict):
    """One turn of a conversation; `role` is system, user or assistant, `name` the speaker's if there is one."""

    role: str
    content: str
    name: NotRequired[str]


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue; `thinking` says whether they end inside a thought; None means unknown."""

    tokens: tuple[int, ...]
    thinking: bool | None


class Prompter:
    """Makes prompts for one model, with its tokenizer and chat template.

    Raise ContextLengthError early for far more tokens than the `context`, if one is given, and ModelUnhealthyError if
    the tokenizer is damaged.
    """

    def __init__(
        self, tokenizer: Any, vocabulary: Vocabulary, *, context: int | None = None, use_template: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._context = context
        self._use_template = use_template and tokenizer.has_chat_template

    def cancellable(self, cancelled: Cancelled) -> Prompter:
        """Return this prompter for one request; its work raises OperationCancelled once the request is cancelled."""
        made = copy.copy(self)
        made._tokenizer = self._tokenizer.cancellable(cancelled)
        return made

    def chat(self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None) -> Prompt:
        """Return the prompt of a conversation that ends with a user's turn; raise ValidationError if it is refused.

        `variables` are for the chat template, with `add_generation_prompt` and `continue_final_message` as
        transformers understands them. Without a chat template the prompt is the contents, separated by blank lines.
        """
        if not self._use_template:
            return self.completion("\n\n".join(message["content"] for message in messages))
        if self._context is not None and len(messages) > self._context:
            # Each message has at least one token.
            raise too_long(f"more than {self._context}", self._context)
        options = {"add_generation_prompt": True, **(variables or {})}
        try:
            tokens = self._tokenizer.apply_chat_template(list(messages), context=self._context, **options)
        except RefusedError as fault:
            raise ValidationError(f"The model's chat template refuses this conversation: {fault}") from fault
        return self._prompt(tokens)

    def completion(self, text: str) -> Prompt:
        """Return a text as a prompt, with the tokens that the tokenizer puts before it.

        An empty text gives only those tokens; the prompt is empty if the tokenizer has none.
        """
        bos = self._tokenizer.bos_token
        text = text or bos or ""
        starts = bos is not None and text.startswith(bos)
        try:
            tokens = self._tokenizer.encode(text, add_special_tokens=not starts, context=self._context)
        except RefusedError as fault:
            raise ValidationError(f"The model's tokenizer can't read this prompt: {fault}") from fault
        if not starts:
            # Drop the end tokens that some tokenizers put behind every text: after them nothing is generated.
            letter = self._tokenizer.encode("a", add_special_tokens=True)
            added = sum(1 for _ in takewhile(self._vocabulary.end_tokens.__contains__, reversed(letter)))
            tokens = tokens[: max(1, len(tokens) - added)]
        return self._prompt(tokens)

    def _prompt(self, tokens: Sequence[int]) -> Prompt:
        try:
            return Prompt(tuple(tokens), self._vocabulary.opens_thinking(tokens))
        except DecodeError as fault:
            raise ModelError(f"The model's tokens can't be decoded: {fault}") from fault
