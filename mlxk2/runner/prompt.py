"""From messages to the token ids of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from jinja2.exceptions import TemplateError

from mlxk2.errors import ValidationError
from mlxk2.runner.rows import FAULTS
from mlxk2.runner.text import Vocabulary


class Message(TypedDict):
    """One turn of a conversation; `role` is system, user or assistant, `name` the speaker's if there is one."""

    role: str
    content: str
    name: NotRequired[str]


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue; `thinking` says that they end inside a reasoning block."""

    tokens: tuple[int, ...]
    thinking: bool


class Prompter:
    """Makes prompts for one model, from its tokenizer and chat template."""

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary, *, use_template: bool = True) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._use_template = use_template and tokenizer.has_chat_template

    def chat(self, messages: Sequence[Message]) -> Prompt:
        """Return the prompt of a conversation that ends with a user's turn; raise ValidationError if that can't be.

        Without a chat template the model gets the contents, separated by blank lines, to continue.
        """
        if not self._use_template:
            return self.completion("\n\n".join(message["content"] for message in messages))
        try:
            tokens = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True)
        except (TemplateError, *FAULTS) as fault:
            raise ValidationError(f"The model's chat template refuses this conversation: {fault}") from fault
        return self._prompt(tokens)

    def completion(self, text: str) -> Prompt:
        """Return the prompt that a text is by itself, with what the tokenizer puts before it.

        Without a text that is what begins one; the prompt has no tokens if the tokenizer knows nothing of that kind.
        """
        bos = self._tokenizer.bos_token
        text = text or bos or ""
        starts = bos is not None and text.startswith(bos)
        tokens = self._tokenizer.encode(text, add_special_tokens=not starts)
        # Some tokenizers end every text; nothing would be left to say.
        while len(tokens) > 1 and tokens[-1] in self._vocabulary.end_tokens and not starts:
            tokens = tokens[:-1]
        return self._prompt(tokens)

    def _prompt(self, tokens: Sequence[int]) -> Prompt:
        return Prompt(tuple(tokens), self._vocabulary.opens_thinking(tokens))
