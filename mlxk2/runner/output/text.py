"""Convert token ids to text: one TextStream per completion, one Vocabulary per model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mlxk2.runner.events import Channel
from mlxk2.runner.output.detokenizers import mapped_bytes
from mlxk2.runner.output.logprobs import Attribution, TokenLogprob
from mlxk2.runner.output.reasoning import Delta, Marks, ReasoningSplitter, is_thinking_name
from mlxk2.runner.output.stops import StopScan, StopStrings

_REPLACEMENT = "\ufffd"
_NO_MARKS = Marks()
# White space, and the characters for it in SentencePiece and byte-level vocabularies.
_WHITE_SPACE = "\u2581\u0120\u010a \n\t"


class Detokenizer(Protocol):
    """Converts tokens to text one by one, as mlx-lm's streaming detokenizers do."""

    @property
    def last_segment(self) -> str:
        """The new text since the last time that this property was read."""

    def add_token(self, token: int) -> None:
        """Add the next token."""

    def finalize(self) -> None:
        """Convert the remaining bytes to text, because no token follows."""


class Tokenizer(Protocol):
    """The part of mlx-lm's tokenizer wrapper that this module uses."""

    @property
    def detokenizer(self) -> Detokenizer:
        """A new detokenizer for each access."""

    @property
    def eos_token_ids(self) -> set[int]:
        """The tokens that end a completion."""

    def decode(self, tokens: list[int]) -> str:
        """Return the text of these tokens, including marks."""


@dataclass(frozen=True)
class Vocabulary:
    """The properties of a model's tokens: how to decode them, which ones end a text, and the marks of reasoning.

    `letter` is a letter in tokens. Detokenizers drop a space at the beginning of a text, so some texts are decoded
    after this letter.
    """

    tokenizer: Tokenizer
    letter: tuple[int, ...]
    size: int
    end_tokens: frozenset[int]
    hidden_tokens: frozenset[int]
    boundaries: frozenset[int]
    marks: Marks
    initial_state: str = "normal"

    @classmethod
    def of(cls, tokenizer: Any, ends: Iterable[int] = ()) -> Vocabulary:
        """Read the properties from mlx-lm's tokenizer wrapper; the tokens in `ends` also end completions."""
        special = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
        special |= set(tokenizer.all_special_ids)
        marks = Marks.of(tokenizer, special)
        size = len(tokenizer)
        end_tokens = frozenset(tokenizer.eos_token_ids) | {token for token in ends if 0 <= token < size}
        tokens = sorted({*special, *tokenizer.added_tokens_decoder} - marks.tokens)
        names = dict(zip(tokens, [name or "" for name in tokenizer.convert_ids_to_tokens(tokens)], strict=True))
        return cls(
            tokenizer=tokenizer,
            letter=tuple(tokenizer.encode("a", add_special_tokens=False)),
            size=size,
            end_tokens=end_tokens,
            hidden_tokens=end_tokens
            | {token for token in special & names.keys() if not is_thinking_name(names[token])},
            # Added tokens that stand for white space are text.
            boundaries=end_tokens | {token for token, name in names.items() if name.strip(_WHITE_SPACE)},
            marks=marks,
            initial_state=tokenizer.response_initial_state or "normal",
        )

    def hides(self, token: int) -> bool:
        """Return whether a token is never text, because it is special or only pads the vocabulary to a round size."""
        return token in self.hidden_tokens or token >= self.size

    def has_open_thought(self, prompt: Sequence[int]) -> bool | None:
        """Return whether a prompt ends inside a thought, or None if its last turn has no mark of a thought."""
        turn = []
        for token in reversed(prompt):
            if token in self.boundaries:
                break
            if token in self.marks.opening or token in self.marks.closing:
                return token in self.marks.opening
            turn.append(token)
        return self.marks.has_open_thought(self.tokenizer.decode(turn[::-1])) if turn and self.marks.untokened else None

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token, which can be a part of a character."""
        mapped = mapped_bytes(self.tokenizer.detokenizer, token)
        if mapped is not None:
            return mapped
        # Decode the token after a letter, and remove the letter. An unknown token adds nothing.
        before = list(self.letter)
        decode = self.tokenizer.decode
        return decode([*before, token]).removeprefix(decode(before)).encode()


class TextStream:
    """Converts the tokens of one completion to text: whole characters, reasoning separate from content, no stop string.

    Stop strings are searched only in the content; in the reasoning they would end the completion before its content.
    A `plain` completion continues the prompt's text: all of it is content. Its first space belongs to it, as in a
    completion that `continues` a message. `logprobs` are those of the content's tokens.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        stop: Sequence[str] = (),
        *,
        thinking: bool | None = False,
        plain: bool = False,
        continues: bool = False,
    ) -> None:
        self.stopped = False
        self.logprobs: list[TokenLogprob] = []
        self._vocabulary = vocabulary
        self._detokenizer = vocabulary.tokenizer.detokenizer
        self._attribution: Attribution[TokenLogprob] = Attribution()
        self._held = 0
        self._marks = _NO_MARKS if plain else vocabulary.marks
        initial = "normal" if plain else "reasoning" if thinking else vocabulary.initial_state
        undecided = thinking is None and not plain
        self._splitter = ReasoningSplitter(self._marks, initial, undecided=undecided, continues=continues)
        self._stops = StopScan(StopStrings(stop))
        self._channel: Channel | None = None
        if plain or continues:
            for token in vocabulary.letter:
                self._detokenizer.add_token(token)
            _ = self._detokenizer.last_segment

    def add(self, token: int, logprob: TokenLogprob | None = None) -> list[Delta]:
        """Add the next token, with its logprob if the request asks for it; return the text that is certain now."""
        if self._vocabulary.hides(token):
            return []
        self._detokenizer.add_token(token)
        text = self._detokenizer.last_segment
        splitter, name = self._splitter, self._marks.text_of(token)
        if name is None:
            deltas = list(self._route(splitter.read(text)))
        else:
            # Text before the mark comes from earlier tokens, which the detokenizer had held back.
            before, _, after = text.rpartition(name)
            deltas = [
                *self._route(splitter.read(before)),
                *self._route(splitter.mark(token)),
                *self._route(splitter.read(after)),
            ]
        if logprob is not None:
            self._attribution.begin(logprob)
            self._attribute(text, deltas)
        return deltas

    def finish(self) -> list[Delta]:
        """Return the text that was held back; call this once, when no token follows."""
        if self.stopped:
            return []
        self._detokenizer.finalize()
        # Drop the first bytes of an incomplete character.
        text = self._detokenizer.last_segment.rstrip(_REPLACEMENT)
        deltas = [*self._route(self._splitter.read(text)), *self._route(self._splitter.finish())]
        if not self.stopped:
            deltas += self._release()
        self._attribute(text, deltas)
        return deltas

    def _attribute(self, text: str, deltas: Sequence[Delta]) -> None:
        """Move the logprobs of the tokens that became content to `logprobs`."""
        content = "".join(part for channel, part in deltas if channel == "content")
        if self.stopped:
            self._held = 0
        elif self._stops.held and not content:
            # The end of the content can be the beginning of a stop string; count the marks after it too.
            self._held += len(text)
        else:
            self._held = self._splitter.held + len(self._stops.held)
        self.logprobs += self._attribution.take(text, content, self._held)

    def _route(self, deltas: Iterable[Delta]) -> Iterator[Delta]:
        """Yield these deltas; yield content only up to a stop string."""
        for channel, text in deltas:
            if self.stopped:
                return
            if channel != self._channel:
                # A stop string can't begin before a block of reasoning and end after it.
                yield from self._release()
                self._channel = channel
            if channel == "content":
                text = self._stops.add(text)
                self.stopped = self._stops.found
            if text:
                yield channel, text

    def _release(self) -> Iterator[Delta]:
        if held := self._stops.flush():
            yield "content", held
