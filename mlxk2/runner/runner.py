"""MLXRunner: the one place where answers are generated, for one request or many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from mlxk2.errors import MlxkError, ModelError
from mlxk2.runner.isolation import Trial
from mlxk2.runner.mlx.memory import Device
from mlxk2.runner.output.reasoning import Kind, Piece
from mlxk2.runner.output.text import TextStream
from mlxk2.runner.prompt_cache import PromptCache
from mlxk2.runner.request import GenerationRequest, check_tokens, token_budget
from mlxk2.runner.sequences import FAULTS, NO_TOKEN, Backend, Rows, Step, TokenLogprob, free_frames

# As many as mlx-lm decodes together when nobody says otherwise.
MAX_ROWS = 32

# What MLX raises where memory is short, also for other reasons; then all that can be computed again is given back.
_OF_MEMORY = (MemoryError, RuntimeError)

_FAILED = "Generation failed"
_NO_NUMBERS = (
    "The model computes no numbers (NaN): its weights are damaged, or do not suit this machine. "
    "Pull the model again with --force, or choose another one."
)
_UNREADABLE = "The model's tokens can't be decoded"

FinishReason = Literal["stop", "length", "interrupted", "error"]


@dataclass(frozen=True)
class Chunk:
    """The next part of an answer.

    `tokens` counts all generated so far, the end token and hidden ones included. `logprobs` are those of the tokens
    that the answer is made of; reasoning, marks and stop strings have none.
    """

    text: str
    kind: Kind
    tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class Session:
    """One request on its way; `error` says why it failed when it ended with the reason `error`.

    `cached_tokens` of the prompt did not have to be computed.
    """

    def __init__(self, request: GenerationRequest, text: TextStream, max_tokens: int) -> None:
        self.request = request
        self.text = text
        self.max_tokens = max_tokens
        self.cached_tokens = 0
        self.answered: list[int] = []
        self.row: int | None = None
        self.ended = False
        self.error: MlxkError | None = None

    @property
    def tokens(self) -> int:
        """How many tokens the answer has so far."""
        return len(self.answered)


Outcome = tuple[Session, Chunk]


class MLXRunner:
    """Generates answers with a loaded model, in the thread that loaded it; it has no threads of its own.

    Requests wait while `max_rows` answers are generated. What was computed is kept in at most `prompt_cache_bytes`, for
    prompts that begin the same.
    """

    def __init__(self, backend: Backend, *, prompt_cache_bytes: int = 0, max_rows: int = MAX_ROWS) -> None:
        self._backend = backend
        self._max_rows = max_rows
        max_arrays = Device.current().cached_arrays if prompt_cache_bytes else None
        self._prompts = PromptCache(prompt_cache_bytes, max_arrays)
        self._rows: Rows | None = None
        self._sessions: dict[int, Session] = {}
        self._trial: Trial[Session] | None = None

    def submit(self, request: GenerationRequest) -> Session:
        """Queue a request for the next step; raise ValidationError or ContextLengthError if it can't be right."""
        check_tokens(request, self._backend.vocabulary_size)
        max_tokens = token_budget(request, self._backend.context_length)
        text = TextStream(
            self._backend.vocabulary,
            request.stop,
            thinking=request.thinking,
            plain=request.plain,
            continues=request.continues,
        )
        session = Session(request, text, max_tokens)
        if self._trial is not None:
            self._trial.join(session)
            return session
        try:
            self._place(session)
        except FAULTS as fault:
            raise _error(fault) from fault
        return session

    def step(self) -> list[Outcome]:
        """Do the next piece of work for all sessions; return what it gave, in the order of each one's text.

        An empty list with sessions left means that prompts are still being read. A fault ends the session that it
        belongs to: which one that is, is found out by trying each of them alone.
        """
        ended = self._try_next() if self._trial is not None and not self._sessions else []
        if self._rows is None or not self._sessions:
            return ended
        try:
            steps = self._rows.next()
        except FAULTS as fault:
            return [*ended, *self._suspect(fault)]
        given = [entry for step in steps for entry in self._take(step)]
        if self._trial is not None and steps:
            self._acquit()
        return [*ended, *given]

    def cancel(self, session: Session) -> list[Chunk]:
        """End a session now; return its last chunks, or nothing if it has ended already."""
        if session.ended:
            return []
        self._withdraw(session)
        if self._trial is not None:
            self._trial.discard(session)
        session.ended = True
        try:
            return list(_last_chunks(session, [], "interrupted"))
        except FAULTS as fault:
            return [self._fail(session, fault, _UNREADABLE)[1]]

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
        for session in [*self._sessions.values(), *(self._trial.sessions if self._trial else ())]:
            session.ended = True
        self._trial = None
        self._drop_rows()
        self._prompts.clear()

    def _place(self, session: Session) -> None:
        """Add a session to the batch."""
        if self._rows is None:
            self._rows = self._backend.batch(self._max_rows, self._prompts)
        place = self._rows.insert(session.request, session.max_tokens, session.answered)
        session.row = place.row
        if not session.answered:
            session.cached_tokens = place.cached_tokens
        self._sessions[place.row] = session

    def _suspect(self, fault: Exception) -> list[Outcome]:
        """Drop the batch; blame its session if there is only one, else begin to try each alone."""
        suspects = list(self._sessions.values())
        free_frames(fault)
        if isinstance(fault, _OF_MEMORY):
            self._prompts.clear()
        self._drop_rows()
        if len(suspects) > 1:
            self._trial = Trial(suspects, fault)
            return []
        return [self._fail(session, fault) for session in suspects]

    def _try_next(self) -> list[Outcome]:
        """Begin to try the next session, or end the trial: those that are left go on together."""
        trial = self._trial
        assert trial is not None
        session = trial.next()
        if session is not None:
            return self._try_to_place([session])
        self._trial = None
        newest = trial.unexplained()
        ended = [] if newest is None else [self._fail(newest, trial.fault)]
        return [*ended, *self._try_to_place(trial.sessions)]

    def _try_to_place(self, sessions: list[Session]) -> list[Outcome]:
        """Add sessions to the batch; those for which that fails end."""
        ended = []
        for session in sessions:
            try:
                self._place(session)
            except FAULTS as fault:
                ended.append(self._fail(session, fault))
        return ended

    def _acquit(self) -> None:
        """Take the session that was tried alone, and got a token, out of the batch until all have been tried."""
        assert self._trial is not None
        for session in list(self._sessions.values()):
            self._withdraw(session)
            self._trial.acquit(session)

    def _take(self, step: Step) -> list[Outcome]:
        """Give a step's token to its session; a token that can't be turned into text ends that session alone."""
        session = self._sessions[step.row]
        if step.finish_reason is not None:
            self._forget(session)
        if step.token == NO_TOKEN:
            self._withdraw(session)
            return [self._end(session, ModelError(_NO_NUMBERS))]
        try:
            return [(session, chunk) for chunk in self._advance(session, step)]
        except FAULTS as fault:
            self._withdraw(session)
            return [self._fail(session, fault, _UNREADABLE)]

    def _advance(self, session: Session, step: Step) -> Iterator[Chunk]:
        if step.cached_tokens is not None and not session.answered:
            session.cached_tokens = step.cached_tokens
        session.answered.append(step.token)
        pieces = session.text.add(step.token, step.logprob)
        if step.finish_reason is None and not session.text.stopped:
            for kind, text in pieces:
                yield _chunk(session, text, kind)
            return
        self._withdraw(session)
        session.ended = True
        yield from _last_chunks(session, pieces, step.finish_reason or "stop")

    def _withdraw(self, session: Session) -> None:
        """Take a session out of the batch, if it is still in it."""
        row = session.row
        self._forget(session)
        if row is not None and self._rows is not None:
            self._rows.remove(row)

    def _forget(self, session: Session) -> None:
        if session.row is not None:
            del self._sessions[session.row]
            session.row = None

    def _fail(self, session: Session, fault: Exception, what: str = _FAILED) -> Outcome:
        return self._end(session, _error(fault, what))

    def _end(self, session: Session, error: ModelError) -> Outcome:
        session.ended, session.error = True, error
        return session, Chunk("", "answer", session.tokens, "error")

    def _drop_rows(self) -> None:
        for session in list(self._sessions.values()):
            self._forget(session)
        if self._rows is not None:
            self._rows.close()
            self._rows = None


def _error(fault: Exception, what: str = _FAILED) -> ModelError:
    return ModelError(f"{what}: {str(fault) or type(fault).__name__}")


def _last_chunks(session: Session, pieces: list[Piece], reason: FinishReason) -> Iterator[Chunk]:
    """Yield these pieces, then the text still held back, then the reason for the end: a stop string before others."""
    kind: Kind = "answer"
    for kind, text in [*pieces, *session.text.finish()]:
        yield _chunk(session, text, kind)
    yield _chunk(session, "", kind, "stop" if session.text.stopped else reason)


def _chunk(session: Session, text: str, kind: Kind, reason: FinishReason | None = None) -> Chunk:
    """Return the next chunk, with the logprobs that wait for one."""
    if kind == "reasoning" or not session.text.logprobs:
        return Chunk(text, kind, session.tokens, reason)
    logprobs = tuple(session.text.logprobs)
    session.text.logprobs.clear()
    return Chunk(text, kind, session.tokens, reason, logprobs)
