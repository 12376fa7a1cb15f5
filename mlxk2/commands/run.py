"""`run`: complete one prompt, or hold a conversation."""

from __future__ import annotations

import fcntl
import os
import select
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, NamedTuple

from mlxk2 import names
from mlxk2.cache.runnable import resolve_runnable
from mlxk2.cache.store import Cache, find_cache_dir
from mlxk2.chat.printer import Printer, interruptible
from mlxk2.chat.terminal import Terminal
from mlxk2.checkpoint.describe import context_length
from mlxk2.checkpoint.snapshot import Snapshot
from mlxk2.errors import CommandError, ContextLengthError, OperationCancelled, ValidationError
from mlxk2.runner.memory import wired_limit
from mlxk2.runner.offline import offline
from mlxk2.runner.prompt.confined import Starter
from mlxk2.runner.request import MAX_PROMPT_CHARACTERS, Sampling, check_context_length, check_max_tokens

if TYPE_CHECKING:
    from mlxk2.chat.assistant import Assistant
    from mlxk2.commands.context import Context
    from mlxk2.runner.prompt.prompter import Message
    from mlxk2.spec import RunData

# After this time without a byte on stdin, a warning explains the wait.
PATIENCE_SECONDS = 3


class Options(NamedTuple):
    """The model, the prompt, the sampling, and how to show the completion."""

    model: str
    prompt: str | None
    max_tokens: int | None
    context_length: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    system: str | None
    adapter: str | None
    no_stream: bool
    no_chat_template: bool
    hide_reasoning: bool
    verbose: bool

    @property
    def sampling(self) -> Sampling:
        """The rules for choosing the next token; raise ValidationError for numbers out of range."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )


def run(options: Options, context: Context) -> RunData | None:
    """Complete the prompt and return its data; without a prompt, chat on a terminal and return None.

    Run all checks that do not need MLX first, because importing MLX takes a second.
    """
    sampling = options.sampling
    check_max_tokens(options.max_tokens)
    check_context_length(options.context_length)
    wired = wired_limit(context.environment)
    wants_chat = options.prompt is None and context.streams.stdin.isatty()
    if wants_chat and context.is_json:
        raise CommandError("With --json, `run` needs a prompt: as an argument, or on stdin.")
    snapshot = resolve_runnable(Cache(find_cache_dir(context.environment)), names.parse(options.model))
    with _utf8("The system prompt"):
        (options.system or "").encode()
    prompt = "" if wants_chat else _read_prompt(options, context, snapshot)
    # Start the tokenizer's process now: it takes as long as importing MLX, and both run at the same time.
    starter = Starter()
    starter.prepare()
    terminal = Terminal(context.streams.stdout, context.streams.stderr, shows=not context.is_json)
    with ExitStack() as stack:
        stack.callback(starter.stop)
        stack.enter_context(terminal.quiet())
        terminal.show("Loading the model")
        with interruptible():
            assistant = _load(options, snapshot, sampling, starter, wired, converses=wants_chat)
        stack.callback(assistant.close)
        if not wants_chat:
            return _complete(assistant, options, context, terminal, snapshot.name, prompt)
        from mlxk2.chat.repl import converse  # noqa: PLC0415 - prompt_toolkit takes a tenth of a second

        terminal.hide()
        shown = {"hide_reasoning": options.hide_reasoning, "no_stream": options.no_stream, "verbose": options.verbose}
        converse(assistant, context.streams, terminal, context.environment, options.system, **shown)
    return None


def exit_code(_options: Options, data: RunData) -> int:
    """Return the exit code after a completion; if the user interrupted it, a script must end too."""
    return OperationCancelled.exit_code if data["finish_reason"] == "interrupted" else 0


def _load(
    options: Options,
    snapshot: Snapshot,
    sampling: Sampling,
    starter: Starter,
    wired: int | None,
    *,
    converses: bool,
) -> Assistant:
    """Import MLX and load the model."""
    with offline():
        from mlxk2.chat import assistant as chat  # noqa: PLC0415 - MLX takes a second
    return chat.Assistant.load(
        snapshot.path,
        name=snapshot.name,
        adapter=options.adapter,
        use_template=not options.no_chat_template,
        sampling=sampling,
        max_tokens=options.max_tokens,
        context=options.context_length,
        starter=starter,
        wired_limit=wired,
        converses=converses,
    )


@contextmanager
def _utf8(name: str) -> Iterator[None]:
    """Raise ValidationError, with the cause, when the text in the block is not UTF-8."""
    try:
        yield
    except UnicodeError as error:
        raise ValidationError(f"{name} is not UTF-8 text: {error}.") from error


def _read_prompt(options: Options, context: Context, snapshot: Snapshot) -> str:
    """Return the text on stdin, a blank line, and the prompt of the command line; either text can be missing."""
    prompt = None if options.prompt == "-" else options.prompt
    with _utf8("The prompt"):
        (prompt or "").encode()
    streams, text = context.streams, ""
    if prompt is None or _has_text_beside_prompt(streams.stdin):
        text = _read_text(context, snapshot)
    parts = [part for part in (text, prompt or "") if part.strip()]
    if not parts:
        raise ValidationError("The prompt is empty.")
    if len(parts) > 1 and streams.stderr.isatty():
        # A shell loop that reads from the same stdin would find no more lines.
        streams.stderr.write(f"Put {len(text):,} characters from stdin before the prompt (< /dev/null prevents it).\n")
    return "\n\n".join(parts)


def _has_text_beside_prompt(stdin: IO[str]) -> bool:
    """Return whether to read stdin as well as the prompt: not from a terminal, and not the rest of a loop's file."""
    if stdin.isatty():
        return False
    file = stdin.fileno()
    can_read = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY  # with nohup it can't
    # A program that has read the beginning of a file, such as a shell in `while read`, also wants the rest.
    is_shared = stat.S_ISREG(os.fstat(file).st_mode) and os.lseek(file, 0, os.SEEK_CUR) > 0
    return can_read and not is_shared


def _read_text(context: Context, snapshot: Snapshot) -> str:
    """Return the text on stdin without the line ends after it; raise ContextLengthError if it fits no context."""
    stdin = context.streams.stdin
    if not stdin.isatty() and not select.select([stdin], [], [], PATIENCE_SECONDS)[0]:
        context.streams.warn("Waiting for text on stdin. If there is none, add < /dev/null to the command.")
    with _utf8("The text on stdin"):
        text = stdin.read(MAX_PROMPT_CHARACTERS + 1)
        text.encode()
    if len(text) > MAX_PROMPT_CHARACTERS:
        tokens = context_length(snapshot)
        holds = f", but the context of {snapshot.name} has {tokens} tokens" if tokens else ""
        raise ContextLengthError(
            f"The text on stdin has more than {MAX_PROMPT_CHARACTERS} characters{holds}. Shorten the text."
        )
    return text.rstrip("\r\n")


def _complete(
    assistant: Assistant, options: Options, context: Context, terminal: Terminal, name: str, prompt: str
) -> RunData:
    """Print the completion of one prompt, at once or token by token, and return it with its counts."""
    is_whole = context.is_json or options.no_stream
    printer = Printer(context.streams.stdout, hide_reasoning=options.hide_reasoning, whole=is_whole, terminal=terminal)
    printer.begin()
    messages: list[Message] = [] if options.system is None else [{"role": "system", "content": options.system}]
    completion = assistant.complete([*messages, {"role": "user", "content": prompt}], printer.show)
    if not context.is_json:
        printer.end(interrupted=completion.finish_reason == "interrupted")
    elif not completion.usage.prompt_tokens:
        raise OperationCancelled("Interrupted.")
    if options.verbose:
        context.streams.stderr.write(f"{completion.statistics}\n")
    timings = completion.timings
    data: RunData = {
        "model": name,
        "prompt": prompt,
        "response": completion.text,
        "reasoning": completion.reasoning,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.usage.prompt_tokens,
        "tokens_generated": completion.usage.completion_tokens,
        "generation_time_s": round(timings.total_seconds, 6),
        "tokens_per_second": round(timings.generated_tokens_per_second or 0.0, 3),
    }
    if timings.first_token_seconds is not None:
        data["time_to_first_token_s"] = round(timings.first_token_seconds, 6)
    if timings.prompt_tokens_per_second is not None:
        data["prompt_tokens_per_second"] = round(timings.prompt_tokens_per_second, 3)
    return data
