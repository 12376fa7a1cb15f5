"""MLXRunner: the one place where answers are generated, for one request or many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from mlxk2.errors import MlxkError, ModelError, ValidationError
from mlxk2.runner.params import GenerationRequest, token_budget
from mlxk2.runner.text import Kind, Piece, TextStream, Vocabulary

# What Python code around MLX raises, MLX itself included.
FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)

# As many as mlx-lm decodes together when nobody says otherwise.
MAX_ROWS = 32

FinishReason = Literal["stop", "length", "interrupted", "error"]


class TokenLogprob(NamedTuple):
    """The natural logarithm of a chosen token's probability, and of those of the likeliest tokens, largest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Step(NamedTuple):
    """The next token of a row of the batch, and why it was the last one; its probability if the request asks for it."""

    row: int
    token: int
    finish_reason: Literal["stop", "length"] | None
    logprob: TokenLogprob | None = None


class Rows(Protocol):
    """The rows that are generated together; `batch.Batch` on MLX, a script in tests."""

    def insert(self, request: GenerationRequest, max_tokens: int) -> int:
        """Add a row; return its number."""

    def next(self) -> list[Step]:
        """Do the next piece of work; return the tokens it gave, at most one for each row."""

    def remove(self, row: int) -> None:
        """Drop a row."""

    def close(self) -> None:
        """Give back what the rows have reserved."""


class Backend(Protocol):
    """A model in memory; `backend.LoadedModel` on MLX, a script in tests."""

    @property
    def vocabulary(self) -> Vocabulary:
        """How tokens become text."""

    @property
    def vocabulary_size(self) -> int:
        """How many tokens the model knows; ids are below it."""

    @property
    def context_length(self) -> int:
        """How many tokens the model can hold, prompt and answer together."""

    def batch(self, max_rows: int) -> Rows:
        """Return a new, empty batch, which decodes at most that many rows together."""


@dataclass(frozen=True)
class Chunk:
    """The next part of an answer.

    `tokens` counts all generated so far, the end token and hidden ones included. `logprobs` are those of the tokens
    since the chunk before, the end token left out.
    """

    text: str
    kind: Kind
    tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class Session:
    """One request on its way; `error` says why it failed when it ended with the reason `error`.

    `tokens` counts those of the answer so far, `cached_tokens` those of the prompt that did not have to be computed.
    """

    def __init__(self, request: GenerationRequest, text: TextStream) -> None:
        self.request = request
        self.text = text
        self.tokens = 0
        self.cached_tokens = 0
        self.logprobs: list[TokenLogprob] = []
        self.row: int | None = None
        self.error: MlxkError | None = None

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
        return len(self.request.prompt)

    @property
    def ended(self) -> bool:
        """Whether no more chunks will come."""
        return self.row is None


class MLXRunner:
    """Generates answers with a loaded model, in the thread that loaded it; it has no threads of its own.

    At most `max_rows` answers are generated together; the requests beyond them wait.
    """

    def __init__(self, backend: Backend, *, prompt_cache_bytes: int = 0, max_rows: int = MAX_ROWS) -> None:
        self._backend = backend
        self._max_rows = max_rows
        self._prompt_cache_bytes = prompt_cache_bytes
        self._rows: Rows | None = None
        self._sessions: dict[int, Session] = {}

    def submit(self, request: GenerationRequest) -> Session:
        """Queue a request for the next step; raise ValidationError or ContextLengthError if it can't be right."""
        self._check_tokens(request)
        max_tokens = token_budget(request, self._backend.context_length)
        text = TextStream(self._backend.vocabulary, request.stop, thinking=request.thinking)
        session = Session(request, text)
        if self._rows is None:
            self._rows = self._backend.batch(self._max_rows)
        session.row = self._rows.insert(request, max_tokens)
        self._sessions[session.row] = session
        return session

    def step(self) -> list[tuple[Session, Chunk]]:
        """Do the next piece of work for all sessions; return what it gave, in the order of each one's text.

        An empty list with sessions left means that prompts are still being read. A fault that no row can be blamed for
        ends all sessions with an error; the next request starts on a new batch.
        """
        if self._rows is None or not self._sessions:
            return []
        try:
            steps = self._rows.next()
        except FAULTS as fault:
            return self._fail_all(ModelError(f"Generation failed: {fault}"))
        return [entry for step in steps for entry in self._take(step)]

    def cancel(self, session: Session) -> list[Chunk]:
        """End a session now; return its last chunks, or nothing if it has ended already."""
        if session.row is None:
            return []
        if self._rows is not None:
            self._rows.remove(session.row)
        self._forget(session)
        return list(_last_chunks(session, [], "interrupted"))

    def stream(self, request: GenerationRequest, interrupted: Callable[[], bool] = bool) -> Iterator[Chunk]:
        """Yield the chunks of one answer, the last one with its finish reason; raise what made it fail.

        `interrupted` is asked before each step. Closing the iterator cancels the request. For a runner without other
        sessions: their chunks would be lost.
        """
        session = self.submit(request)
        try:
            while not session.ended:
                steps = [(session, chunk) for chunk in self.cancel(session)] if interrupted() else self.step()
                if session.error is not None:
                    raise session.error
                yield from (chunk for owner, chunk in steps if owner is session)
        finally:
            self.cancel(session)

    def close(self) -> None:
        """Drop all sessions and what the batch has reserved."""
        self._sessions.clear()
        if self._rows is not None:
            self._rows.close()
            self._rows = None

    def _check_tokens(self, request: GenerationRequest) -> None:
        # MLX reads past its arrays when an index is out of range: a wrong answer at best.
        size = self._backend.vocabulary_size
        if not all(0 <= token < size for token in request.prompt):
            raise ValidationError(f"The prompt has a token that the model does not know (it has {size}).")
        for token, _ in request.sampling.logit_bias:
            if token >= size:
                raise ValidationError(f"logit_bias names token {token}, but the model has {size} tokens.")

    def _take(self, step: Step) -> list[tuple[Session, Chunk]]:
        """Give a step's token to its session; a token that can't be turned into text ends that session alone."""
        session = self._sessions[step.row]
        try:
            return [(session, chunk) for chunk in self._advance(session, step)]
        except FAULTS as fault:
            if step.finish_reason is None and session.row is not None and self._rows is not None:
                self._rows.remove(session.row)
            self._forget(session)
            session.error = ModelError(f"The model's tokens can't be decoded: {fault}")
            return [(session, Chunk("", "answer", session.tokens, "error"))]

    def _advance(self, session: Session, step: Step) -> Iterator[Chunk]:
        session.tokens += 1
        if step.logprob and step.token not in self._backend.vocabulary.end_tokens:
            session.logprobs.append(step.logprob)
        pieces = session.text.add(step.token)
        if step.finish_reason is None and not session.text.stopped:
            for kind, text in pieces:
                yield _chunk(session, text, kind)
            return
        if step.finish_reason is None and self._rows is not None:
            self._rows.remove(step.row)
        self._forget(session)
        reason: FinishReason = "stop" if session.text.stopped else step.finish_reason or "stop"
        yield from _last_chunks(session, pieces, reason)

    def _forget(self, session: Session) -> None:
        if session.row is not None:
            self._sessions.pop(session.row, None)
            session.row = None

    def _fail_all(self, error: MlxkError) -> list[tuple[Session, Chunk]]:
        failed = list(self._sessions.values())
        self.close()
        for session in failed:
            session.row, session.error = None, error
        return [(session, Chunk("", "answer", session.tokens, "error")) for session in failed]


def _last_chunks(session: Session, pieces: list[Piece], reason: FinishReason) -> Iterator[Chunk]:
    """Yield these pieces, then the text still held back, then the reason for the end."""
    kind: Kind = "answer"
    for kind, text in [*pieces, *session.text.finish()]:
        yield _chunk(session, text, kind)
    yield _chunk(session, "", kind, reason)


def _chunk(session: Session, text: str, kind: Kind, reason: FinishReason | None = None) -> Chunk:
    """Return the next chunk, with the logprobs that wait for one."""
    if not session.logprobs:
        return Chunk(text, kind, session.tokens, reason)
    logprobs = tuple(session.logprobs)
    session.logprobs.clear()
    return Chunk(text, kind, session.tokens, reason, logprobs)
