"""The marks around reasoning: which of them a model's tokenizer knows, and what a prompt has opened."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mlx_lm.generate import TextStateMachine

Transitions = dict[str, list[tuple[str, str | None]]]

# What opens and what closes a thought. Most models have both as tokens; the last ones only as text.
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
# Models write these even where neither their vocabulary nor their template knows them.
_COMMON = _PAIRS[0]
# A special token of such a name is shown where its meaning is not known.
_SPEAKS_OF_THINKING = re.compile("think|thought|reason", re.IGNORECASE)
# The first of those that stand for tokens in what a state machine reads: surrogates, which no decoded text has.
_FIRST_SYMBOL = 0xD800

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


@dataclass(frozen=True)
class Marks:
    """The marks that a model's tokenizer and chat template know.

    `opening` and `closing` are tokens, with their texts. `spelled` are pairs of texts that count at the beginning of an
    answer, `closing_texts` those that close a thought where no token does, and `untokened` the pairs that are not two
    single tokens. `transitions` are marks of several tokens, by state, with a symbol for each token in them that text
    can't imitate; `symbols` has these, by token.
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
        """Read the marks from a tokenizer wrapper of mlx-lm, of which these tokens are special."""
        vocabulary: Mapping[str, int] = tokenizer.get_vocab()
        known = _known_pairs(tokenizer, vocabulary)
        composed = [pair for pair in _mlx_lm_pair(tokenizer) if pair not in _PAIRS]
        transitions = _transitions(tokenizer, vocabulary, composed)
        symbols, names = _symbols(tokenizer, special, transitions)
        transitions = _with_symbols(transitions, names)
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
            transitions=transitions | {spelled_state(end): [(end, "normal")] for _, end in spelled},
            symbols=symbols,
            names=names,
        )

    @cached_property
    def machine(self) -> TextStateMachine:
        """What finds the marks of several tokens, and those that are text, in the text of an answer."""
        return TextStateMachine(self.transitions)

    @cached_property
    def longest(self) -> int:
        """How many characters the longest of these marks has."""
        return max((len(mark) for edges in self.transitions.values() for mark, _ in edges), default=0)

    @property
    def tokens(self) -> frozenset[int]:
        """All tokens that are marks, or parts of marks."""
        return frozenset({*self.opening, *self.closing, *self.symbols})

    @property
    def may_close_alone(self) -> bool:
        """Whether a thought may be closed that was opened out of sight."""
        return bool(self.closing or self.closing_texts)

    def text_of(self, token: int) -> str | None:
        """Return the text of a token that is a mark, or a part of one; None for others."""
        symbol = self.symbols.get(token)
        return self.opening.get(token) or self.closing.get(token) or (symbol and self.names[symbol])

    def are_open_in(self, text: str) -> bool | None:
        """Whether a text ends inside a thought, by the marks that are not single tokens; None if it has none."""
        last = {end: text.rfind(end) for pair in self.untokened for end in pair}
        opened = max((last[start] for start, _ in self.untokened), default=-1)
        closed = max((last[end] for _, end in self.untokened), default=-1)
        return None if opened == closed else opened > closed

    def written(self, text: str) -> str:
        """Return a text with the names of the tokens that symbols stand for."""
        return "".join(self.names.get(character, character) for character in text) if self.names else text


def spelled_state(end: str) -> str:
    """Return the state of a thought that this text ends."""
    return f"reasoning until {end}"


def speaks_of_thinking(name: str | None) -> bool:
    """Whether a token's name says that it has to do with reasoning."""
    return name is not None and _SPEAKS_OF_THINKING.search(name) is not None


def _known_pairs(tokenizer: Any, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the pairs that the vocabulary or the chat template knows."""
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    return [pair for pair in _PAIRS if any(mark in vocabulary or mark in template for mark in pair)]


def _mlx_lm_pair(tokenizer: Any) -> list[tuple[str, str]]:
    return [(tokenizer.think_start, tokenizer.think_end)] if tokenizer.has_thinking else []


def _transitions(tokenizer: Any, vocabulary: Mapping[str, int], pairs: Sequence[tuple[str, str]]) -> Transitions:
    """Return the marks of several tokens that change the state of the text, by state."""
    found: Transitions = {"normal": [], "reasoning": []}
    for start, end in pairs:
        # A lone end mark is markup too: a template may have opened the block out of sight.
        found["normal"] += [(start, "reasoning"), (end, "normal")]
        found["reasoning"] += [(end, "normal"), (start, "reasoning")]
    if all(mark in vocabulary for mark in _HARMONY_MARKS):
        found = {state: [*found.get(state, []), *edges] for state, edges in _HARMONY.items()}
    found["normal"] += [(mark, "normal") for mark in tokenizer.structural_markers]
    for state, edges in tokenizer.response_transitions.items():
        found.setdefault(state, []).extend(edges)
    # mlx-lm leaves some states to a parser of tool calls: nothing ends them here.
    ends: Transitions = {state: [] for edges in found.values() for _, state in edges if state is not None}
    return ends | found


def _symbols(tokenizer: Any, special: Iterable[int], transitions: Transitions) -> tuple[dict[int, str], dict[str, str]]:
    """Return a symbol for each token that the marks are made of, and the token's name by its symbol."""
    marks = [mark for edges in transitions.values() for mark, _ in edges]
    # Words, which may be added tokens too, are text.
    tokens = sorted({*special, *tokenizer.added_tokens_decoder})
    named = zip(tokens, tokenizer.convert_ids_to_tokens(tokens), strict=True)
    parts = {t: name for t, name in named if name and not name.isalnum() and any(name in mark for mark in marks)}
    symbols = {token: chr(_FIRST_SYMBOL + number) for number, token in enumerate(parts)}
    return symbols, {symbol: parts[token] for token, symbol in symbols.items()}


def _with_symbols(transitions: Transitions, names: Mapping[str, str]) -> Transitions:
    """Return the transitions with a symbol for each token in their marks, where names overlap for the longest."""
    by_length = sorted(names.items(), key=lambda entry: -len(entry[1]))

    def rewritten(mark: str) -> str:
        for symbol, name in by_length:
            mark = mark.replace(name, symbol)
        return mark

    return {state: [(rewritten(mark), following) for mark, following in edges] for state, edges in transitions.items()}
