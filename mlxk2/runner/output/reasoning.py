"""Reasoning apart from the answer, as a model's tokens come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from mlx_lm.generate import TextStateMachine

from mlxk2.runner.output.marks import Marks, spelled_state

Kind = Literal["answer", "reasoning"]
Piece = tuple[Kind, str]

# So many characters at the beginning of an answer wait for a mark that makes them reasoning.
MAX_BEGINNING = 32
_QUOTATION_MARKS = ("`", "'", '"', "\u2018", "\u201c")


class ReasoningSplitter:
    """Splits what a model says into reasoning and answer.

    Tokens that are marks count as such: one that closes a thought anywhere in it, one that opens a thought where a line
    of the answer begins, or anywhere if it is special. Text that looks like a mark counts at the beginning alone, and
    where a thought begun with one ends. All other marks are quoted, and stay. Line ends at the beginning of a thought,
    and of an answer after one, are dropped. Where it is `undecided` whether the prompt opened a thought, a mark that
    closes one soon after the beginning makes reasoning of what came before. To `continue` a message is no beginning.
    """

    def __init__(
        self, marks: Marks, initial: str = "normal", *, undecided: bool = False, continues: bool = False
    ) -> None:
        self._marks = marks
        self._state = marks.machine.make_state(initial)
        self._may_close_alone = undecided and marks.may_close_alone
        # The text that is not read yet, since a mark may follow that changes what it is.
        self._beginning: str | None = None if continues or _kind_of(initial) is None else ""
        self._kind: Kind | None = _kind_of(initial) if continues else None
        self._trims = False
        # Whether there was only white space since the last mark, and since the last line end.
        self._is_fresh = self._is_line_blank = not continues

    @property
    def held(self) -> int:
        """How many of the last characters may still become text."""
        return len(self._beginning or "") + len(self._marks.written(self._state[3]))

    def read(self, text: str) -> Iterator[Piece]:
        """Take the next text; yield what is now certain."""
        if self._beginning is None:
            yield from self._run(text)
        elif text:
            self._beginning += text
            yield from self._read_beginning(self._beginning)

    def _read_beginning(self, text: str) -> Iterator[Piece]:
        said = text.lstrip()
        white = len(text) - len(said)
        for start, end in self._marks.spelled:
            if said.startswith(start) and white + len(start) <= MAX_BEGINNING:
                self._beginning = None
                yield from self._enter(spelled_state(end))
                yield from self._run(said[len(start) :])
                return
        if self._may_close_alone:
            found = [(text.index(end), end) for end in self._marks.closing_texts if end in text[:MAX_BEGINNING]]
            if found:
                begin, end = min(found)
                yield from self._close_alone(text[:begin])
                yield from self._run(text[begin + len(end) :])
                return
        may_open = any(start.startswith(said) for start, _ in self._marks.spelled)
        if len(text) > MAX_BEGINNING or not (may_open or self._may_close_alone):
            yield from self._end_beginning()

    def mark(self, token: int) -> Iterator[Piece]:
        """Take the next token, which is a mark or a part of one; yield what is now certain."""
        marks = self._marks
        if token in marks.symbols:
            yield from self._end_beginning()
            yield from self._run(marks.symbols[token])
        elif token in marks.closing and self._is_closed_alone():
            yield from self._close_alone(self._beginning or "")
        else:
            if token in marks.opening and not (self._beginning or "").strip():
                self._beginning = None
            yield from self._end_beginning()
            yield from self._flush()
            yield from self._take(token)

    def _is_closed_alone(self) -> bool:
        return self._may_close_alone and self._beginning is not None and not self._beginning.endswith(_QUOTATION_MARKS)

    def _close_alone(self, thought: str) -> Iterator[Piece]:
        self._beginning = None
        yield from self._enter("reasoning")
        if thought.strip():
            yield from self._say(thought)
        yield from self._enter("normal")

    def _take(self, token: int) -> Iterator[Piece]:
        """Take a token that is a mark by itself, once all text before it has been read."""
        marks = self._marks
        if _kind_of(self._state[0]) == "reasoning":
            if token in marks.closing:
                yield from self._enter("normal")
            elif not self._is_fresh:
                yield from self._say(marks.opening[token])
        elif token in marks.opening and (self._is_line_blank or token in marks.special):
            yield from self._enter("reasoning")
        elif token in marks.closing and self._is_fresh:
            yield from self._enter("normal")
        else:
            yield from self._say(marks.opening.get(token) or marks.closing[token])

    def finish(self) -> Iterator[Piece]:
        """Yield the text still held back; to be called once, when nothing follows."""
        yield from self._end_beginning()
        yield from self._flush()

    def _end_beginning(self) -> Iterator[Piece]:
        text, self._beginning = self._beginning, None
        if text:
            yield from self._run(text)

    def _enter(self, state: str) -> Iterator[Piece]:
        self._state = self._marks.machine.make_state(state)
        self._is_fresh = self._is_line_blank = True
        yield from self._say("")
        if state == "normal":
            self._trims = True

    def _run(self, text: str) -> Iterator[Piece]:
        self._state, segments = _split(self._state, text, self._marks.longest)
        for state, part in segments:
            yield from self._say(self._marks.written(part), state)

    def _flush(self) -> Iterator[Piece]:
        self._state, text, _ = TextStateMachine.flush(self._state)
        yield from self._say(self._marks.written(text))

    def _say(self, text: str, state: str | None = None) -> Iterator[Piece]:
        """Yield a text as what it is in a state, by default the present one."""
        kind = _kind_of(state or self._state[0])
        if kind is None:
            return
        if kind != self._kind:
            self._trims = self._kind is not None or kind == "reasoning"
            self._is_fresh = self._is_line_blank = True
            self._kind = kind
        if self._trims:
            text = text.lstrip("\n")
            self._trims = not text
        self._is_fresh &= not text.strip()
        self._is_line_blank = not text.rpartition("\n")[2].strip() and ("\n" in text or self._is_line_blank)
        yield kind, text


def _kind_of(state: str | None) -> Kind | None:
    """Return what the text of a state is: that of some (a channel's header, say) is markup."""
    if state is not None and state.startswith("reasoning"):
        return "reasoning"
    return "answer" if state == "normal" else None


def _split(state: Any, text: str, most: int) -> tuple[Any, list[tuple[str | None, str]]]:
    """Split a text as mlx-lm does; hold back no more than may begin what is looked for, `most` characters at most.

    mlx-lm holds back all that came since nothing may have begun: everything, where "aab" is looked for in "aaaa".
    """
    (name, node, states, held), segments = TextStateMachine.split(state, text)
    certain = len(held) - max(most - 1, 0)
    if name is not None and certain > 0:
        segments[-1] = (name, segments[-1][1] + held[:certain])
        held = held[certain:]
    return (name, node, states, held), segments
