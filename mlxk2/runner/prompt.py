"""From messages to the token ids of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, NotRequired, TypedDict

from jinja2.exceptions import TemplateError

from mlxk2.errors import ValidationError
from mlxk2.runner.params import too_long
from mlxk2.runner.rows import FAULTS
from mlxk2.runner.template import is_confined
from mlxk2.runner.text import Vocabulary
from mlxk2.runner.tokenizer_faults import as_damage

# Of a token, in most texts fewer.
_CHARACTERS = 8
# What a text can be to blame for; of all else the tokenizer is.
_OF_THE_TEXT = (TemplateError, *FAULTS)


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
    """Makes prompts for one model, from its tokenizer and chat template.

    Raises ContextLengthError early for what has by far more tokens than the `context`, if one is given, and
    ModelUnhealthyError where the tokenizer is damaged.
    """

    def __init__(
        self, tokenizer: Any, vocabulary: Vocabulary, *, context: int | None = None, use_template: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._context = context
        self._use_template = use_template and tokenizer.has_chat_template

    def chat(self, messages: Sequence[Message]) -> Prompt:
        """Return the prompt of a conversation that ends with a user's turn; raise ValidationError if that can't be.

        Without a chat template the model gets the contents, separated by blank lines, to continue.
        """
        if not self._use_template:
            return self.completion("\n\n".join(message["content"] for message in messages))
        try:
            with as_damage(_damaged, but=_OF_THE_TEXT):
                return self._prompt(self._rendered(list(messages)))
        except _OF_THE_TEXT as fault:
            raise ValidationError(f"The model's chat template refuses this conversation: {fault}") from fault

    def completion(self, text: str) -> Prompt:
        """Return the prompt that a text is by itself, with what the tokenizer puts before it.

        Without a text that is what begins one; the prompt has no tokens if the tokenizer knows nothing of that kind.
        """
        bos = self._tokenizer.bos_token
        text = text or bos or ""
        starts = bos is not None and text.startswith(bos)
        with as_damage(_damaged, but=_OF_THE_TEXT):
            tokens = self._encode(text, add_special_tokens=not starts)
            if not starts:
                tokens = tokens[: max(1, len(tokens) - self._ends_added())]
            return self._prompt(tokens)

    def _ends_added(self) -> int:
        """Return how many end tokens the tokenizer puts behind every text; nothing would be left to say after them."""
        letter = self._tokenizer.encode("a", add_special_tokens=True)
        return sum(1 for _ in takewhile(self._vocabulary.end_tokens.__contains__, reversed(letter)))

    def _rendered(self, messages: list[Message]) -> Sequence[int]:
        render = partial(self._tokenizer.apply_chat_template, messages, add_generation_prompt=True)
        if is_confined(self._tokenizer):
            return self._encode(render(tokenize=False), add_special_tokens=False)
        tokens: Sequence[int] = render()
        return tokens

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the tokens of a text; of a long one the beginning is tried first, since that takes its time."""
        encode = partial(self._tokenizer.encode, add_special_tokens=add_special_tokens)
        length = len(text) if self._context is None else self._context * _CHARACTERS
        while length < len(text):
            if self._context is not None and len(encode(text[:length])) > self._context:
                raise too_long(f"more than {self._context}", self._context)
            length *= 2
        tokens: list[int] = encode(text)
        return tokens

    def _prompt(self, tokens: Sequence[int]) -> Prompt:
        return Prompt(tuple(tokens), self._vocabulary.opens_thinking(tokens))


def _damaged(fault: BaseException) -> str:
    return f"The model's tokenizer is damaged. Pull the model again or choose another one: {fault}"
