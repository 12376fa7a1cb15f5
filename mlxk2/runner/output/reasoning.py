"""Split a completion into reasoning and content, by the marks around the reasoning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mlx_lm.generate import TextStateMachine

from mlxk2.runner.events import Channel

Delta = tuple[Channel, str]  # The next text of a completion, with its channel.
Transitions = dict[str, list[tuple[str, str | None]]]

# Characters. If the prompt may have opened a thought, a mark that closes it is expected within this length.
MAX_BEGINNING = 32
_QUOTATION_MARKS = ("`", "'", '"', "\u2018", "\u201c")
# Pairs of marks that open and close a thought. Most models have both as tokens; those of the last pairs are only text.
_PAIRS = (
    ("<think>", "</think>"),  # Qwen, DeepSeek and most others
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
    ("[THINK]", "[/THINK]"),  # Magistral, Ministral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<reasoning>", "</reasoning>"),  # Reka Flash
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1
    ("<|thought_start|>", "<|thought_end|>"),  # MiniCPM
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi
    ("Here is my thought process:", "Here is my response:"),  # Granite
)
# Models write these marks even if neither their vocabulary nor their template has them.
_COMMON = _PAIRS[0]
# A special token with such a name is shown if its meaning is unknown.
_NAMES_THINKING = re.compile("think|thought|reason", re.IGNORECASE)
# In the input of the state machine, symbols represent tokens. They are surrogates, which decoded text never contains.
_FIRST_SYMBOL = 0xD800

# OpenAI's harmony format: a message is <|start|>role<|channel|>name<|message|>text<|end|>.
_HARMONY_MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
_BETWEEN = [("<|end|>", "between"), ("<|start|>", "between")]
_CHANNELS = [("<|channel|>final", "final"), ("<|channel|>analysis", "aside"), ("<|channel|>commentary", "aside")]
_HARMONY: Transitions = {
    "normal": [*_CHANNELS, *_BETWEEN, ("<|message|>", "normal")],
    "reasoning": [*_CHANNELS, *_BETWEEN, ("<|message|>", "reasoning")],
    "between": [*_CHANNELS, ("<|message|>", "normal")],
    # The rest of a message's header, up to its text; only the final channel is for the user.
    "final": [("<|message|>", "normal")],
    "aside": [("<|message|>", "reasoning")],
}


@dataclass(frozen=True)
class Marks:
    """The marks in a model's tokenizer and chat template.

    `opening` and `closing` map tokens that are marks to their texts. `spelled` are pairs of texts that count as marks
    only at the beginning of a completion. `closing_texts` close a thought if the closing mark is not a token.
    `untokened` are the pairs that are not two single tokens. `transitions` are marks of several tokens, by state; each
    token in them is replaced by a symbol, which text can't imitate. `symbols` maps tokens to these symbols, and `names`
    maps symbols to the tokens' names.
    """

    opening: Mapping[int, str] = field(default_factory=dict)
    closing: Mapping[int, str] = field(default_factory=dict)
    special: frozenset[int] = frozenset()
    spelled: Sequence[tuple[str, str]] = ()
    closing_texts: Sequence[str] = ()
    untokened: Sequence[tuple[str, str]] = ()
    transitions: Transitions = field(default_factory=dict)
    symbols: Mapping[int, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Any, special: Iterable[int]) -> Marks:
        """Read the marks from mlx-lm's tokenizer wrapper; `special` are its special tokens."""
        vocabulary: Mapping[str, int] = tokenizer.get_vocab()
        template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
        known = [pair for pair in _PAIRS if any(mark in vocabulary or mark in template for mark in pair)]
        of_mlx_lm = [(tokenizer.think_start, tokenizer.think_end)] if tokenizer.has_thinking else []
        composed = [pair for pair in of_mlx_lm if pair not in _PAIRS]
        transitions = _transitions(tokenizer, vocabulary, composed)
        transitions, symbols, names = _with_symbols(tokenizer, special, transitions)
        closing_texts = [end for _, end in known if end not in vocabulary]
        transitions["reasoning"] += [(end, "normal") for end in closing_texts]
        spelled = list(dict.fromkeys((_COMMON, *known)))
        return cls(
            opening={vocabulary[start]: start for start, _ in known if start in vocabulary},
            closing={vocabulary[end]: end for _, end in known if end in vocabulary},
            special=frozenset(special),
            spelled=spelled,
            closing_texts=closing_texts,
            untokened=[pair for pair in (*known, *composed) if not vocabulary.keys() >= set(pair)],
            transitions=transitions | {_spelled_state(end): [(end, "normal")] for _, end in spelled},
            symbols=symbols,
            names=names,
        )

    @cached_property
    def machine(self) -> TextStateMachine:
        """The state machine that finds marks of several tokens, and marks that are text, in a completion."""
        return TextStateMachine(self.transitions)

    @cached_property
    def max_length(self) -> int:
        """The length in characters of the longest of these marks."""
        return max((len(mark) for edges in self.transitions.values() for mark, _ in edges), default=0)

    @property
    def tokens(self) -> frozenset[int]:
        """All tokens that are marks or parts of marks."""
        return frozenset({*self.opening, *self.closing, *self.symbols})

    @property
    def may_close_alone(self) -> bool:
        """Whether the model has a mark that can close a thought which the prompt opened without a visible mark."""
        return bool(self.closing or self.closing_texts)

    def text_of(self, token: int) -> str | None:
        """Return the text of a token that is a mark or a part of one, or None for other tokens."""
        symbol = self.symbols.get(token)
        return self.opening.get(token) or self.closing.get(token) or (symbol and self.names[symbol])

    def has_open_thought(self, text: str) -> bool | None:
        """Return whether a text ends inside a thought, judged by marks that are not single tokens; None without any."""
        last = {end: text.rfind(end) for pair in self.untokened for end in pair}
        opened = max((last[start] for start, _ in self.untokened), default=-1)
        closed = max((last[end] for _, end in self.untokened), default=-1)
        return None if opened == closed else opened > closed

    def without_symbols(self, text: str) -> str:
        """Return a text with token names instead of symbols."""
        return "".join(self.names.get(character, character) for character in text) if self.names else text


def is_thinking_name(name: str) -> bool:
    """Return whether a token's name shows that the token is about reasoning."""
    return _NAMES_THINKING.search(name) is not None


def _spelled_state(end: str) -> str:
    """Return the name of the state inside a thought that this text closes."""
    return f"reasoning until {end}"


def _transitions(tokenizer: Any, vocabulary: Mapping[str, int], pairs: Sequence[tuple[str, str]]) -> Transitions:
    """Return the marks of several tokens that change the state, by state."""
    found: Transitions = {"normal": [], "reasoning": []}
    for start, end in pairs:
        # A closing mark without an opening one is a mark too, because the prompt can have opened the thought.
        found["normal"] += [(start, "reasoning"), (end, "normal")]
        found["reasoning"] += [(end, "normal"), (start, "reasoning")]
    if all(mark in vocabulary for mark in _HARMONY_MARKS):
        found = {state: [*found.get(state, []), *edges] for state, edges in _HARMONY.items()}
    found["normal"] += [(mark, "normal") for mark in tokenizer.structural_markers]
    for state, edges in tokenizer.response_transitions.items():
        found.setdefault(state, []).extend(edges)
    # In mlx-lm, a parser of tool calls ends some states; here they have no end.
    ends: Transitions = {state: [] for edges in found.values() for _, state in edges if state is not None}
    return ends | found


def _with_symbols(
    tokenizer: Any, special: Iterable[int], transitions: Transitions
) -> tuple[Transitions, dict[int, str], dict[str, str]]:
    """Replace each token in the marks by a symbol; return the transitions, the symbols by token, names by symbol."""
    marks = [mark for edges in transitions.values() for mark, _ in edges]
    # Added tokens that are words are text, not marks.
    tokens = sorted({*special, *tokenizer.added_tokens_decoder})
    named = zip(tokens, tokenizer.convert_ids_to_tokens(tokens), strict=True)
    found = {t: name for t, name in named if name and not name.isalnum() and any(name in mark for mark in marks)}
    symbols = {token: chr(_FIRST_SYMBOL + number) for number, token in enumerate(found)}
    names = {symbol: found[token] for token, symbol in symbols.items()}
    # If names of tokens overlap, replace the longest name first.
    by_length = sorted(names.items(), key=lambda entry: -len(entry[1]))
    replaced: Transitions = {}
    for state, edges in transitions.items():
        replaced[state] = []
        for mark, following in edges:
            for symbol, name in by_length:
                mark = mark.replace(name, symbol)
            replaced[state].append((mark, following))
    return replaced, symbols, names


class ReasoningSplitter:
    """Splits a completion into reasoning and content.

    A token that closes a thought counts anywhere in the thought. A token that opens a thought counts at the beginning
    of a line of the content, or anywhere if it is a special token. Text that looks like a mark counts only at the
    beginning of the completion, and at the end of a thought that began with such a text. All other marks are quoted
    text and stay. Line ends at the beginning of a thought, and of content after a thought, are dropped.

    If it is `undecided` whether the prompt opened a thought, and a closing mark comes within `MAX_BEGINNING`
    characters, the text before it is reasoning. A completion that `continues` a message has no such beginning.
    """

    def __init__(
        self, marks: Marks, initial: str = "normal", *, undecided: bool = False, continues: bool = False
    ) -> None:
        self._marks = marks
        self._state = marks.machine.make_state(initial)
        self._may_close_alone = undecided and marks.may_close_alone
        # Text that is not split yet, because a following mark can make it reasoning.
        self._beginning: str | None = None if continues or _channel_of(initial) is None else ""
        self._channel: Channel | None = _channel_of(initial) if continues else None
        self._trims = False
        # Whether only white space came after the last mark, and after the last line end.
        self._is_fresh = self._is_line_blank = not continues

    @property
    def held(self) -> int:
        """How many of the last characters are held back and can become text later."""
        return len(self._beginning or "") + len(self._marks.without_symbols(self._state[3]))

    def read(self, text: str) -> Iterator[Delta]:
        """Add the next text; yield the text that can't change any more."""
        if self._beginning is None:
            yield from self._run(text)
        elif text:
            self._beginning += text
            yield from self._read_beginning(self._beginning)

    def _read_beginning(self, text: str) -> Iterator[Delta]:
        stripped = text.lstrip()
        blank = len(text) - len(stripped)
        for start, end in self._marks.spelled:
            if stripped.startswith(start) and blank + len(start) <= MAX_BEGINNING:
                self._beginning = None
                yield from self._enter(_spelled_state(end))
                yield from self._run(stripped[len(start) :])
                return
        if self._may_close_alone:
            found = [(text.index(end), end) for end in self._marks.closing_texts if end in text[:MAX_BEGINNING]]
            if found:
                begin, end = min(found)
                yield from self._close_alone(text[:begin])
                yield from self._run(text[begin + len(end) :])
                return
        may_open = any(start.startswith(stripped) for start, _ in self._marks.spelled)
        if len(text) > MAX_BEGINNING or not (may_open or self._may_close_alone):
            yield from self._end_beginning()

    def mark(self, token: int) -> Iterator[Delta]:
        """Add the next token, which is a mark or a part of one; yield the text that can't change any more."""
        marks, beginning = self._marks, self._beginning
        if token in marks.symbols:
            yield from self._end_beginning()
            yield from self._run(marks.symbols[token])
            return
        may_close_alone = self._may_close_alone and beginning is not None and not beginning.endswith(_QUOTATION_MARKS)
        if token in marks.closing and may_close_alone:
            yield from self._close_alone(beginning or "")
            return
        if token in marks.opening and not (beginning or "").strip():
            self._beginning = None
        yield from self._end_beginning()
        yield from self._flush()
        # This token is a complete mark, and all text before it has been read.
        if _channel_of(self._state[0]) == "reasoning":
            if token in marks.closing:
                yield from self._enter("normal")
            elif not self._is_fresh:
                yield from self._emit(marks.opening[token])
        elif token in marks.opening and (self._is_line_blank or token in marks.special):
            yield from self._enter("reasoning")
        elif token in marks.closing and self._is_fresh:
            yield from self._enter("normal")
        else:
            yield from self._emit(marks.opening.get(token) or marks.closing[token])

    def finish(self) -> Iterator[Delta]:
        """Yield the text that was held back; call this once, when nothing follows."""
        yield from self._end_beginning()
        yield from self._flush()

    def _close_alone(self, thought: str) -> Iterator[Delta]:
        self._beginning = None
        yield from self._enter("reasoning")
        if thought.strip():
            yield from self._emit(thought)
        yield from self._enter("normal")

    def _end_beginning(self) -> Iterator[Delta]:
        text, self._beginning = self._beginning, None
        if text:
            yield from self._run(text)

    def _enter(self, state: str) -> Iterator[Delta]:
        self._state = self._marks.machine.make_state(state)
        self._is_fresh = self._is_line_blank = True
        yield from self._emit("")
        if state == "normal":
            self._trims = True

    def _run(self, text: str) -> Iterator[Delta]:
        """Split a text as mlx-lm does, but hold back at most the length of the longest mark.

        mlx-lm holds back all text after a possible beginning of a mark. If "aab" is a mark, it holds back all of
        "aaaa".
        """
        state, segments = TextStateMachine.split(self._state, text)
        name, node, states, held = state
        certain = len(held) - max(self._marks.max_length - 1, 0)
        if name is not None and certain > 0:
            segments[-1] = (name, segments[-1][1] + held[:certain])
            state = (name, node, states, held[certain:])
        self._state = state
        for segment_state, segment in segments:
            yield from self._emit(self._marks.without_symbols(segment), segment_state)

    def _flush(self) -> Iterator[Delta]:
        self._state, text, _ = TextStateMachine.flush(self._state)
        yield from self._emit(self._marks.without_symbols(text))

    def _emit(self, text: str, state: str | None = None) -> Iterator[Delta]:
        """Yield a text with the channel of a state, by default of the current state."""
        channel = _channel_of(state or self._state[0])
        if channel is None:
            return
        if channel != self._channel:
            self._trims = self._channel is not None or channel == "reasoning"
            self._is_fresh = self._is_line_blank = True
            self._channel = channel
        if self._trims:
            text = text.lstrip("\n")
            self._trims = not text
        self._is_fresh &= not text.strip()
        self._is_line_blank = not text.rpartition("\n")[2].strip() and ("\n" in text or self._is_line_blank)
        yield channel, text


def _channel_of(state: str | None) -> Channel | None:
    """Return the channel of a state's text, or None for markup such as the header of a message."""
    if state is not None and state.startswith("reasoning"):
        return "reasoning"
    return "content" if state == "normal" else None
