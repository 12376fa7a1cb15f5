"""From token ids to text: one TextStream per request, one Vocabulary per model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mlx_lm.generate import TextStateMachine

from mlxk2.runner.attribution import Attribution
from mlxk2.runner.stops import StopScan, StopStrings

if TYPE_CHECKING:
    from mlxk2.runner.rows import TokenLogprob

Kind = Literal["answer", "reasoning"]
Piece = tuple[Kind, str]
Transitions = dict[str, list[tuple[str, str | None]]]

# The states whose text is shown; text of any other state (a channel's header, say) is markup.
_KIND_OF_STATE: dict[str | None, Kind] = {"normal": "answer", "reasoning": "reasoning"}
_THINK = ("<think>", "</think>")
_NO_CHARACTER = "\ufffd"

# OpenAI's harmony format: a message is <|start|>role<|channel|>name<|message|>text<|end|>.
_HARMONY_MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
_BETWEEN = [("<|end|>", "between"), ("<|start|>", "between")]
_CHANNELS = [("<|channel|>final", "final"), ("<|channel|>analysis", "aside"), ("<|channel|>commentary", "aside")]
_HARMONY: Transitions = {
    "normal": [*_CHANNELS, *_BETWEEN, ("<|message|>", "normal")],
    "reasoning": [*_CHANNELS, *_BETWEEN, ("<|message|>", "reasoning")],
    "between": [*_CHANNELS, ("<|message|>", "normal")],
    # The rest of a message's header, up to its text; only the final channel is addressed to the user.
    "final": [("<|message|>", "normal")],
    "aside": [("<|message|>", "reasoning")],
}


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
    transitions: Transitions
    initial_state: str = "normal"
    think_start: str | None = None

    @classmethod
    def of(cls, tokenizer: Any, ends: Iterable[int] = ()) -> Vocabulary:
        """Read a tokenizer wrapper of mlx-lm once, for all requests; those of `ends` that it knows end answers too."""
        think = _think_pair(tokenizer)
        transitions = _transitions(tokenizer, think)
        size = len(tokenizer)
        end_tokens = frozenset(tokenizer.eos_token_ids) | {token for token in ends if 0 <= token < size}
        return cls(
            tokenizer=tokenizer,
            letter=tuple(tokenizer.encode("a", add_special_tokens=False)),
            size=size,
            end_tokens=end_tokens,
            hidden_tokens=end_tokens | _special_tokens(tokenizer, transitions),
            transitions=transitions,
            initial_state=tokenizer.response_initial_state or "normal",
            think_start=think[0] if think else None,
        )

    @cached_property
    def marks(self) -> TextStateMachine:
        """What finds the marks in the text of an answer."""
        return TextStateMachine(self.transitions)

    def hides(self, token: int) -> bool:
        """Whether a token is never text: special, or one of those that only pad the model's output to a round size."""
        return token in self.hidden_tokens or token >= self.size

    def opens_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt of these token ids ends inside a reasoning block that the template opened."""
        if self.think_start is None:
            return False
        end = self.tokenizer.decode(list(prompt[-16:]))
        return end.rstrip().endswith(self.think_start)


def _think_pair(tokenizer: Any) -> tuple[str, str] | None:
    """Return the marks around reasoning: mlx-lm's, or those of the chat template."""
    if tokenizer.has_thinking:
        return tokenizer.think_start, tokenizer.think_end
    template = tokenizer.chat_template
    return _THINK if isinstance(template, str) and _THINK[1] in template else None


def _transitions(tokenizer: Any, think: tuple[str, str] | None) -> Transitions:
    """Return the marks that change the state of the text, by state."""
    found: Transitions = {"normal": [], "reasoning": []}
    if think:
        start, end = think
        # A lone end mark is markup too: a template may have opened the block out of sight.
        found["normal"] += [(start, "reasoning"), (end, "normal")]
        found["reasoning"] += [(end, "normal"), (start, "reasoning")]
    vocabulary = tokenizer.get_vocab()
    if all(mark in vocabulary for mark in _HARMONY_MARKS):
        found = {state: [*found.get(state, []), *edges] for state, edges in _HARMONY.items()}
    found["normal"] += [(mark, "normal") for mark in tokenizer.structural_markers]
    for state, edges in tokenizer.response_transitions.items():
        found.setdefault(state, []).extend(edges)
    # mlx-lm leaves some states to a parser of tool calls: nothing ends them here.
    ends: Transitions = {state: [] for edges in found.values() for _, state in edges if state is not None}
    return ends | found


def _special_tokens(tokenizer: Any, transitions: Transitions) -> frozenset[int]:
    """Return the ids that stand for no text, except those that the marks are made of."""
    marks = [mark for edges in transitions.values() for mark, _ in edges]
    special = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    special |= set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(sorted(special))
    return frozenset(
        token for token, name in zip(sorted(special), names, strict=True) if not any(name in mark for mark in marks)
    )


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
        thinking: bool = False,
        plain: bool = False,
        continues: bool = False,
    ) -> None:
        self.stopped = False
        self.logprobs: list[TokenLogprob] = []
        self._vocabulary = vocabulary
        self._detokenizer = vocabulary.tokenizer.detokenizer
        self._attribution: Attribution[TokenLogprob] = Attribution()
        self._held = 0
        initial = "normal" if plain else "reasoning" if thinking else vocabulary.initial_state
        transitions = {} if plain else vocabulary.transitions
        self._marks = (TextStateMachine({}) if plain else vocabulary.marks).make_state(initial)
        self._stops = StopScan(StopStrings(stop))
        self._longest_mark = max((len(mark) for edges in transitions.values() for mark, _ in edges), default=0)
        self._kind: Kind | None = None
        self._at_start = not (plain or continues)
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
        pieces = list(self._read(text))
        if logprob is not None:
            self._attribution.begin(logprob)
            self._attribute(text, pieces)
        return pieces

    def finish(self) -> list[Piece]:
        """Return the text still held back; to be called once, when no token follows."""
        if self.stopped:
            return []
        self._detokenizer.finalize()
        # Bytes without the rest of their character are no text.
        text = self._detokenizer.last_segment.rstrip(_NO_CHARACTER)
        pieces = list(self._read(text))
        if not self.stopped:
            self._marks, held, state = TextStateMachine.flush(self._marks)
            pieces += [*self._route(state, held), *self._release()]
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
            self._held = len(self._marks[3]) + len(self._stops.held)
        self.logprobs += self._attribution.take(text, content, self._held)

    def _read(self, text: str) -> Iterator[Piece]:
        if not text:
            return
        self._marks, segments = _split(self._marks, text, self._longest_mark)
        for state, part in segments:
            if self.stopped:
                return
            yield from self._route(state, part)

    def _route(self, state: str | None, text: str) -> Iterator[Piece]:
        kind = _KIND_OF_STATE.get(state)
        if kind is None:
            return
        if kind != self._kind:
            # A stop string does not span a block of reasoning.
            yield from self._release()
            self._at_start = self._kind is not None or kind == "reasoning"
            self._kind = kind
        if self._at_start:
            text = text.lstrip("\n")
            self._at_start = not text
        if kind == "answer":
            text = self._before_stop(text)
        if text:
            yield kind, text

    def _before_stop(self, text: str) -> str:
        text = self._stops.add(text)
        self.stopped = self._stops.found
        return text

    def _release(self) -> Iterator[Piece]:
        if held := self._stops.flush():
            yield "answer", held


def _split(state: Any, text: str, longest: int) -> tuple[Any, list[tuple[str | None, str]]]:
    """Split a text as mlx-lm does; hold back no more than may begin what is looked for, `longest` characters at most.

    mlx-lm holds back all that came since nothing may have begun: everything, where "aab" is looked for in "aaaa".
    """
    (name, node, states, held), segments = TextStateMachine.split(state, text)
    certain = len(held) - max(longest - 1, 0)
    if name is not None and certain > 0:
        segments[-1] = (name, segments[-1][1] + held[:certain])
        held = held[certain:]
    return (name, node, states, held), segments
