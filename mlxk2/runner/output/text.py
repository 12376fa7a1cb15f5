"""From token ids to text: one TextStream per request, one Vocabulary per model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mlxk2.runner.output.attribution import Attribution
from mlxk2.runner.output.marks import Marks, speaks_of_thinking
from mlxk2.runner.output.reasoning import Kind, Piece, ReasoningSplitter
from mlxk2.runner.output.stops import StopScan, StopStrings

if TYPE_CHECKING:
    from mlxk2.runner.sequences import TokenLogprob

_NO_CHARACTER = "\ufffd"
_NO_MARKS = Marks()


class Detokenizer(Protocol):
    """Turns tokens into text as they come; mlx-lm's streaming detokenizers do."""

    @property
    def last_segment(self) -> str:
        """The text that became known since this was last read."""

    def add_token(self, token: int) -> None:
        """Take the next token."""

    def finalize(self) -> None:
        """Take what is left as it is: no token will follow."""


class Tokenizer(Protocol):
    """The part of mlx-lm's tokenizer wrapper that text needs."""

    @property
    def detokenizer(self) -> Detokenizer:
        """A new detokenizer at each reading."""

    @property
    def eos_token_ids(self) -> set[int]:
        """The tokens that end an answer."""

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
        """Read a tokenizer wrapper of mlx-lm once, for all requests; those of `ends` that it knows end answers too."""
        special = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
        special |= set(tokenizer.all_special_ids)
        marks = Marks.of(tokenizer, special)
        size = len(tokenizer)
        end_tokens = frozenset(tokenizer.eos_token_ids) | {token for token in ends if 0 <= token < size}
        return cls(
            tokenizer=tokenizer,
            letter=tuple(tokenizer.encode("a", add_special_tokens=False)),
            size=size,
            end_tokens=end_tokens,
            hidden_tokens=end_tokens | _named(tokenizer, special - marks.tokens, lambda n: not speaks_of_thinking(n)),
            boundaries=end_tokens
            | _named(tokenizer, {*special, *tokenizer.added_tokens_decoder} - marks.tokens, _is_visible),
            marks=marks,
            initial_state=tokenizer.response_initial_state or "normal",
        )

    def hides(self, token: int) -> bool:
        """Whether a token is never text: special, or one of those that only pad the model's output to a round size."""
        return token in self.hidden_tokens or token >= self.size

    def opens_thinking(self, prompt: Sequence[int]) -> bool | None:
        """Whether a prompt of these token ids ends inside a thought; None if its last turn says nothing of any."""
        said = []
        for token in reversed(prompt):
            if token in self.boundaries:
                break
            if token in self.marks.opening or token in self.marks.closing:
                return token in self.marks.opening
            said.append(token)
        return self.marks.are_open_in(self.tokenizer.decode(said[::-1])) if said and self.marks.untokened else None


def _named(tokenizer: Any, tokens: Iterable[int], wanted: Callable[[str], bool]) -> frozenset[int]:
    """Return those of these tokens whose names are wanted."""
    ordered = sorted(tokens)
    names = tokenizer.convert_ids_to_tokens(ordered)
    return frozenset(token for token, name in zip(ordered, names, strict=True) if wanted(name or ""))


def _is_visible(name: str) -> bool:
    # Added tokens may stand for white space, which is text.
    return bool(name.strip("\u2581\u0120\u010a \n\t"))


class TextStream:
    """The text of one answer: whole characters only, reasoning apart, nothing of a stop string.

    Stop strings are looked for in the answer alone: in the reasoning they would end it before it began. A `plain` one
    goes on with another text: it is all answer, and its first space belongs to it, as in one that `continues`.
    `logprobs` are those of the tokens that the answer is made of.
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
        self._kind: Kind | None = None
        if plain or continues:
            self._skip(vocabulary.letter)

    def _skip(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._detokenizer.add_token(token)
        _ = self._detokenizer.last_segment

    def add(self, token: int, logprob: TokenLogprob | None = None) -> list[Piece]:
        """Take the next token, with its logprob if it is asked for; return the text that is now certain."""
        if self._vocabulary.hides(token):
            return []
        self._detokenizer.add_token(token)
        text = self._detokenizer.last_segment
        pieces = list(self._read(token, text))
        if logprob is not None:
            self._attribution.begin(logprob)
            self._attribute(text, pieces)
        return pieces

    def _read(self, token: int, text: str) -> Iterator[Piece]:
        name = self._marks.text_of(token)
        if name is None:
            yield from self._route(self._splitter.read(text))
            return
        # Before its text there may be some that the detokenizer had kept back.
        before, _, after = text.rpartition(name)
        yield from self._route(self._splitter.read(before))
        yield from self._route(self._splitter.mark(token))
        yield from self._route(self._splitter.read(after))

    def finish(self) -> list[Piece]:
        """Return the text still held back; to be called once, when no token follows."""
        if self.stopped:
            return []
        self._detokenizer.finalize()
        # Bytes without the rest of their character are no text.
        text = self._detokenizer.last_segment.rstrip(_NO_CHARACTER)
        pieces = [*self._route(self._splitter.read(text)), *self._route(self._splitter.finish())]
        if not self.stopped:
            pieces += self._release()
        self._attribute(text, pieces)
        return pieces

    def _attribute(self, text: str, pieces: Sequence[Piece]) -> None:
        content = "".join(part for kind, part in pieces if kind == "answer")
        if self.stopped:
            self._held = 0
        elif self._stops.held and not content:
            # Marks may have followed what could be the beginning of a stop string.
            self._held += len(text)
        else:
            self._held = self._splitter.held + len(self._stops.held)
        self.logprobs += self._attribution.take(text, content, self._held)

    def _route(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for kind, text in pieces:
            if self.stopped:
                return
            if kind != self._kind:
                # A stop string does not span a block of reasoning.
                yield from self._release()
                self._kind = kind
            said = self._before_stop(text) if kind == "answer" else text
            if said:
                yield kind, said

    def _before_stop(self, text: str) -> str:
        text = self._stops.add(text)
        self.stopped = self._stops.found
        return text

    def _release(self) -> Iterator[Piece]:
        if held := self._stops.flush():
            yield "answer", held
