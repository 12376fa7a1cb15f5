"""Make the token ids of a prompt from messages or a text."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NotRequired, TypedDict

from mlxk2.errors import ModelError, ValidationError
from mlxk2.runner.output.text import Vocabulary
from mlxk2.runner.prompt.confined import IsCancelled
from mlxk2.runner.prompt.tokenizer import DecodeError, RefusedError
from mlxk2.runner.request import too_long


class Message(TypedDict):
    """One turn of a conversation; `role` is system, user or assistant, `name` the optional name of the speaker."""

    role: str
    content: str
    name: NotRequired[str]


@dataclass(frozen=True)
class Prompt:
    """The token ids of a prompt; `thinking` is true if they end inside a thought, None if that is unknown."""

    tokens: tuple[int, ...]
    thinking: bool | None


class Prompter:
    """Makes prompts for one model, with its tokenizer and chat template.

    Raise ContextLengthError early if the prompt is far longer than `context`, and ModelUnhealthyError if the tokenizer
    is damaged.
    """

    def __init__(
        self, tokenizer: Any, vocabulary: Vocabulary, *, context: int | None = None, use_template: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._context = context
        self._use_template = use_template and tokenizer.has_chat_template

    def cancellable(self, is_cancelled: IsCancelled) -> Prompter:
        """Return this prompter for one request; its work raises OperationCancelled once the request is cancelled."""
        made = copy.copy(self)
        made._tokenizer = self._tokenizer.cancellable(is_cancelled)
        return made

    def chat(self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None) -> Prompt:
        """Return the prompt of a conversation; raise ValidationError if the chat template refuses the conversation.

        `variables` are for the chat template; `add_generation_prompt` and `continue_final_message` have the same
        meaning as in transformers. Without a chat template, join the contents with blank lines.
        """
        if not self._use_template:
            return self.completion("\n\n".join(message["content"] for message in messages))
        if self._context is not None and len(messages) > self._context:
            # Each message has at least one token.
            raise too_long(f"more than {self._context}", self._context)
        options = {"add_generation_prompt": True, **(variables or {})}
        try:
            tokens = self._tokenizer.apply_chat_template(list(messages), context=self._context, **options)
        except RefusedError as error:
            raise ValidationError(f"The model's chat template refuses this conversation: {error}") from error
        return self._make_prompt(tokens)

    def completion(self, text: str) -> Prompt:
        """Return a text as a prompt, after the tokens that the tokenizer adds at the beginning.

        For an empty text, the prompt is only these tokens, or empty if the tokenizer adds none.
        """
        bos = self._tokenizer.bos_token
        text = text or bos or ""
        starts = bos is not None and text.startswith(bos)
        try:
            tokens = self._tokenizer.encode(text, add_special_tokens=not starts, context=self._context)
        except RefusedError as error:
            raise ValidationError(f"The model's tokenizer can't read this prompt: {error}") from error
        if not starts:
            # Drop the end tokens that some tokenizers add after every text, because models generate nothing after them.
            letter = self._tokenizer.encode("a", add_special_tokens=True)
            added = sum(1 for _ in takewhile(self._vocabulary.end_tokens.__contains__, reversed(letter)))
            tokens = tokens[: max(1, len(tokens) - added)]
        return self._make_prompt(tokens)

    def _make_prompt(self, tokens: Sequence[int]) -> Prompt:
        try:
            return Prompt(tuple(tokens), self._vocabulary.has_open_thought(tokens))
        except DecodeError as error:
            raise ModelError(f"The model's tokens can't be decoded: {error}") from error
