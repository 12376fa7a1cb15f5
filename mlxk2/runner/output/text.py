"""From token ids to text: one TextStream per request, one Vocabulary per model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mlxk2.runner.events import Channel
from mlxk2.runner.output.detokenizers import mapped_bytes
from mlxk2.runner.output.logprobs import Attribution, TokenLogprob
from mlxk2.runner.output.reasoning import Delta, Marks, ReasoningSplitter, names_thinking
from mlxk2.runner.output.stops import StopScan, StopStrings

_REPLACEMENT = "\ufffd"
_NO_MARKS = Marks()
# White space, and how SentencePiece and byte-level vocabularies write it.
_WHITE_SPACE = "\u2581\u0120\u010a \n\t"


class Detokenizer(Protocol):
    """Turns tokens into text as they come; mlx-lm's streaming detokenizers do."""

    @property
    def last_segment(self) -> str:
        """The text that became known since this was last read."""

    def add_token(self, token: int) -> None:
        """Add the next token."""

    def finalize(self) -> None:
        """Turn what is left into text as it is, because no token will follow."""


class Tokenizer(Protocol):
    """The part of mlx-lm's tokenizer wrapper that text needs."""

    @property
    def detokenizer(self) -> Detokenizer:
        """A new detokenizer at each reading."""

    @property
    def eos_token_ids(self) -> set[int]:
        """The tokens that end a completion."""

    def decode(self, tokens: list[int]) -> str:
        """Return the text of these tokens, with all their marks."""


@dataclass(frozen=True)
class Vocabulary:
    """What a model's tokenizer says about text: how to decode it, what ends it, how reasoning is marked.

    `letter` is a text that others can follow, in tokens: detokenizers drop the space that a text begins with.
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
        """Read a tokenizer wrapper of mlx-lm, once for all requests; tokens of `ends` end completions too."""
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
            hidden_tokens=end_tokens | {token for token in special & names.keys() if not names_thinking(names[token])},
            # Added tokens may stand for white space, which is text.
            boundaries=end_tokens | {token for token, name in names.items() if name.strip(_WHITE_SPACE)},
            marks=marks,
            initial_state=tokenizer.response_initial_state or "normal",
        )

    def hides(self, token: int) -> bool:
        """Whether a token is never text: it is special, or only pads the model's output to a round size."""
        return token in self.hidden_tokens or token >= self.size

    def opens_thinking(self, prompt: Sequence[int]) -> bool | None:
        """Whether a prompt of these token ids ends inside a thought; None if its last turn has no mark of a thought."""
        turn = []
        for token in reversed(prompt):
            if token in self.boundaries:
                break
            if token in self.marks.opening or token in self.marks.closing:
                return token in self.marks.opening
            turn.append(token)
        return self.marks.are_open_in(self.tokenizer.decode(turn[::-1])) if turn and self.marks.untokened else None

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes that a token stands for, which need not be whole characters."""
        mapped = mapped_bytes(self.tokenizer.detokenizer, token)
        if mapped is not None:
            return mapped
        # What the token adds to a text. An unknown token adds nothing.
        before = list(self.letter)
        decode = self.tokenizer.decode
        return decode([*before, token]).removeprefix(decode(before)).encode()


class TextStream:
    """The text of one completion: whole characters only, reasoning apart, nothing of a stop string.

    Stop strings are searched in the answer alone: in the reasoning they would end the completion before its answer. A
    `plain` completion continues the prompt's text: it is all answer, and its first space belongs to it, as in one that
    `continues` a message. `logprobs` are those of the tokens that the answer consists of.
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
        """Add the next token, with its logprob if the request asks for it; return the text that is now certain."""
        if self._vocabulary.hides(token):
            return []
        self._detokenizer.add_token(token)
        text = self._detokenizer.last_segment
        splitter, name = self._splitter, self._marks.text_of(token)
        if name is None:
            deltas = list(self._route(splitter.read(text)))
        else:
            # Before the mark there may be text that the detokenizer had kept back.
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
        """Return the text still held back; call this once, when no token follows."""
        if self.stopped:
            return []
        self._detokenizer.finalize()
        # Bytes without the rest of their character are no text.
        text = self._detokenizer.last_segment.rstrip(_REPLACEMENT)
        deltas = [*self._route(self._splitter.read(text)), *self._route(self._splitter.finish())]
        if not self.stopped:
            deltas += self._release()
        self._attribute(text, deltas)
        return deltas

    def _attribute(self, text: str, deltas: Sequence[Delta]) -> None:
        """Move the logprobs of the tokens that became content to `logprobs`."""
        content = "".join(part for channel, part in deltas if channel == "answer")
        if self.stopped:
            self._held = 0
        elif self._stops.held and not content:
            # Marks may have followed what could be the beginning of a stop string.
            self._held += len(text)
        else:
            self._held = self._splitter.held + len(self._stops.held)
        self.logprobs += self._attribution.take(text, content, self._held)

    def _route(self, deltas: Iterable[Delta]) -> Iterator[Delta]:
        """Yield these deltas, of the answer only what comes before a stop string."""
        for channel, text in deltas:
            if self.stopped:
                return
            if channel != self._channel:
                # A stop string does not span a block of reasoning.
                yield from self._release()
                self._channel = channel
            if channel == "answer":
                text = self._stops.add(text)
                self.stopped = self._stops.found
            if text:
                yield channel, text

    def _release(self) -> Iterator[Delta]:
        if held := self._stops.flush():
            yield "answer", held
