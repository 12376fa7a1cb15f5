"""A scripted backend: stands in for a model in memory and generates the tokens of a script, one for each byte."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

from mlxk2.chat.assistant import Assistant
from mlxk2.runner.events import Event
from mlxk2.runner.output.logprobs import TokenLogprob
from mlxk2.runner.output.text import Vocabulary
from mlxk2.runner.prompt.confined import ConfinedProcess, Starter
from mlxk2.runner.prompt.prompter import Prompter
from mlxk2.runner.prompt.tokenizer import RefusedError
from mlxk2.runner.prompt_cache import PromptCache
from mlxk2.runner.request import GenerationRequest, Sampling
from mlxk2.runner.runner import MLXRunner
from mlxk2.runner.sequences import Reading, Step

END, BROKEN = 256, 289
_MARKS = {
    "<end>": END,
    "<think>": 257,
    "</think>": 258,
    "<|start|>": 259,
    "<|channel|>": 260,
    "<|message|>": 261,
    "<|end|>": 262,
    "<pad>": 263,
    "[THINK]": 264,
    "[/THINK]": 265,
    "<|channel>": 266,
    "<channel|>": 267,
    "<|other_thought|>": 268,
    "<|turn|>": 269,
}
_NAMES = {number: name for name, number in _MARKS.items()}
SIZE = 300

Script = Callable[[GenerationRequest], Sequence[int | Exception]]


def tokens_of(*parts: str | bytes | int) -> list[int]:
    """Return the tokens of a script: one for every byte, and one for every mark that is a part by itself."""
    tokens: list[int] = []
    for part in parts:
        if isinstance(part, int):
            tokens.append(part)
        elif part in _MARKS:
            tokens.append(_MARKS[part])
        else:
            tokens.extend(part.encode() if isinstance(part, str) else part)
    return tokens


class ScriptedDetokenizer:
    """Decodes bytes one by one; an unfinished character waits for its end."""

    tokenmap = [bytes([byte]) for byte in range(END)] + [name.encode() for name in _MARKS]

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""

    def add_token(self, token: int) -> None:
        """Decode a byte or a mark."""
        if token == BROKEN:
            raise KeyError(token)
        self._text += _NAMES.get(token) or self._decoder.decode(bytes([token]))

    def finalize(self) -> None:
        """Decode the rest."""
        self._text += self._decoder.decode(b"", final=True)

    @property
    def last_segment(self) -> str:
        """Return the text since the last call."""
        text, self._text = self._text, ""
        return text


@dataclass
class ScriptedTokenizer:
    """Has the attributes of mlx-lm's tokenizer wrapper; its chat template is `role:content;` for every turn."""

    marks: Sequence[str] = ("<end>", "<think>", "</think>")
    has_chat_template: bool = True
    template_end: str = ""
    bos_token: str | None = None
    eos_token_ids: frozenset[int] = frozenset({END})
    chat_template: str | None = None
    structural_markers: tuple[str, ...] = ()
    response_transitions: Mapping[str, Any] = field(default_factory=dict)
    response_initial_state: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def think_start(self) -> str | None:
        """Return the mark that, to mlx-lm, opens reasoning."""
        return "<|channel>thought" if "<|channel>" in self.marks else "<think>" if "<think>" in self.marks else None

    @property
    def think_end(self) -> str:
        """Return the mark that, to mlx-lm, closes reasoning."""
        return "<channel|>" if "<|channel>" in self.marks else "</think>"

    @property
    def has_thinking(self) -> bool:
        """Return whether mlx-lm knows marks of reasoning."""
        return self.think_start is not None

    @property
    def detokenizer(self) -> ScriptedDetokenizer:
        """Return a new detokenizer."""
        return ScriptedDetokenizer()

    def cancellable(self, _: Callable[[], bool]) -> ScriptedTokenizer:
        """Return this tokenizer: it needs no cancellation."""
        return self

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Return all marks; they are special, except those of reasoning."""
        return {_MARKS[mark]: SimpleNamespace(special="think" not in mark) for mark in (*self.marks, "<pad>")}

    @property
    def all_special_ids(self) -> list[int]:
        """Return the ids of the end and the padding."""
        return [END, _MARKS["<pad>"]]

    def __len__(self) -> int:
        return 290

    def get_vocab(self) -> dict[str, int]:
        """Return the marks and their ids."""
        return {mark: _MARKS[mark] for mark in self.marks}

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the names of marks."""
        return [_NAMES[number] for number in ids]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return "".join(_NAMES.get(token) or chr(token) for token in tokens)

    def encode(self, text: str, add_special_tokens: bool, context: int | None = None) -> list[int]:  # noqa: ARG002
        """Return one token per byte, after the BOS token if there is one and it is wanted."""
        return tokens_of((self.bos_token or "") if add_special_tokens else "", text)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], context: int | None = None, **variables: Any
    ) -> list[int]:
        """Return the tokens of all turns and the template's end; raise RefusedError if a role comes twice in a row."""
        assert context is None or context > 0
        self.variables = variables
        roles = [message["role"] for message in messages]
        if any(role == following for role, following in zip(roles, roles[1:], strict=False)):
            raise RefusedError("roles must alternate")
        text = "".join(f"{_speaker(message)}:{message['content']};" for message in messages)
        return tokens_of(text, self.template_end)


def _speaker(message: Mapping[str, str]) -> str:
    return f"{message['name']} {message['role']}" if "name" in message else message["role"]


class ScriptedBatch:
    """Sequences that follow the script, as in a real batch; an exception in a script comes out of `next`."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._sequences: dict[int, Iterator[int | Exception]] = {}
        self._left: dict[int, int] = {}
        self._tops: dict[int, int | None] = {}

    def insert(
        self, sequence_id: int, request: GenerationRequest, max_tokens: int, completion: Sequence[int] = ()
    ) -> None:
        """Add a sequence that generates the rest of the script for this request, then the end."""
        self._sequences[sequence_id] = iter([*self._script(request), *[END] * 2][len(completion) :])
        self._left[sequence_id] = max_tokens - len(completion)
        self._tops[sequence_id] = request.likeliest_count

    def next(self) -> list[Step | Reading]:
        """Return the next token of every sequence."""
        return [self._advance(sequence_id) for sequence_id in list(self._sequences)]

    def _advance(self, sequence_id: int) -> Step:
        token = next(self._sequences[sequence_id])
        if isinstance(token, Exception):
            raise token
        self._left[sequence_id] -= 1
        is_last = self._left[sequence_id] == 0
        reason: Literal["stop", "length"] | None = "stop" if token == END else "length" if is_last else None
        if reason:
            self.remove(sequence_id)
        return Step(sequence_id, token, reason, self._logprob(sequence_id, token))

    def _logprob(self, sequence_id: int, token: int) -> TokenLogprob | None:
        """Return log probabilities that fall as ids rise, so the most likely tokens have the lowest ids."""
        top = self._tops[sequence_id]
        return None if top is None else TokenLogprob(token, -token / 8, tuple((n, -n / 8) for n in range(top)))

    def remove(self, sequence_id: int) -> None:
        """Drop a sequence; KeyError if it is not there."""
        del self._sequences[sequence_id]

    def close(self) -> None:
        """Do nothing: no memory is reserved."""

    def __len__(self) -> int:
        return len(self._sequences)


class ScriptedBackend:
    """A model in memory that follows a script."""

    vocabulary_size = SIZE
    prompt_cache_bytes = 0
    max_cached_arrays: int | None = None

    def __init__(
        self, script: Script, context_length: int = 4096, batch: type[ScriptedBatch] = ScriptedBatch, **tokenizer: Any
    ) -> None:
        self.tokenizer = ScriptedTokenizer(**tokenizer)
        self.vocabulary = Vocabulary.of(self.tokenizer)
        self.context_length = context_length
        self.batches: list[ScriptedBatch] = []
        self.requests: list[GenerationRequest] = []
        self._script = script
        self._kind = batch

    def batch(self, max_sequences: int, prompts: PromptCache) -> ScriptedBatch:
        """Return a new batch for any number of sequences, and remember it."""
        assert max_sequences > 0 and not prompts.nbytes
        self.batches.append(self._kind(self._say))
        return self.batches[-1]

    def _say(self, request: GenerationRequest) -> Sequence[int | Exception]:
        self.requests.append(request)
        return self._script(request)

    @property
    def prompts(self) -> list[str]:
        """Return the texts of all prompts so far."""
        return [self.tokenizer.decode(request.prompt) for request in self.requests]


def saying(*parts: str | bytes | int, **options: Any) -> ScriptedBackend:
    """Return a backend that generates the same text for every request."""
    return ScriptedBackend(lambda _: tokens_of(*parts), **options)


def request(prompt: str = "hello", **options: Any) -> GenerationRequest:
    """Return a request whose prompt is the bytes of a text."""
    return GenerationRequest(tuple(prompt.encode()), **options)


def generate(backend: ScriptedBackend, **options: Any) -> list[Event]:
    """Return all events of one request."""
    return list(MLXRunner(backend).stream(request(**options)))


def assistant(backend: ScriptedBackend, max_tokens: int | None = None) -> Assistant:
    """Return an assistant on a scripted backend."""
    return Assistant(backend, Prompter(backend.tokenizer, backend.vocabulary), Sampling(), max_tokens)


class Streams(NamedTuple):
    """The streams of a program, kept in memory."""

    stdin: io.StringIO
    stdout: io.StringIO
    stderr: io.StringIO


def streams(stdin: str = "") -> Streams:
    """Return new streams with this text on stdin."""
    return Streams(io.StringIO(stdin), io.StringIO(), io.StringIO())


class OneProcess(Starter):
    """A starter that returns the same process while it lives, because starting one takes a second."""

    def __init__(self) -> None:
        super().__init__()
        self.process: ConfinedProcess | None = None

    def take(self) -> ConfinedProcess:
        """Return the process, or a new one."""
        if self.process is None or not self.process.is_alive:
            self.process = super().take()
        return self.process
