"""`run`: one answer to a prompt, or a conversation."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import IO, TYPE_CHECKING

from mlxk2 import names
from mlxk2.cache.runnable import runnable
from mlxk2.cache.store import Cache, find_cache_dir
from mlxk2.chat.printer import Printer
from mlxk2.checkpoint.context import context_length
from mlxk2.checkpoint.snapshot import Contents, Snapshot
from mlxk2.errors import CommandError, ContextLengthError, ValidationError
from mlxk2.runner.limits import wired_limit
from mlxk2.runner.offline import offline
from mlxk2.runner.prompt.confined import Starter
from mlxk2.runner.request import Sampling, check_context_length, check_max_tokens

# Far more than any context holds. What stdin has beyond it is not read: it may never end.
MAX_PROMPT_CHARACTERS = 1 << 25

if TYPE_CHECKING:
    from mlxk2.chat.assistant import Answer, Assistant
    from mlxk2.runner.prompt.prompter import Message
    from mlxk2.spec import RunData


def run(args: Namespace) -> RunData | None:
    """Answer the prompt as `args` says, or chat on a terminal, which gives no data.

    Whatever can be known to be wrong without MLX is found before MLX is imported, which takes a second.
    """
    sampling = _sampling(args)
    check_max_tokens(args.max_tokens)
    check_context_length(args.context_length)
    wired = wired_limit(os.environ)
    wants_chat = args.prompt is None and args.streams.stdin.isatty()
    if wants_chat and args.json:
        raise CommandError("With --json, `run` needs a prompt: as an argument, or on stdin.", command="run")
    snapshot = runnable(Cache(find_cache_dir(os.environ)), names.parse(args.model))
    _check_system(args.system)
    prompt = "" if wants_chat else _prompt(args, snapshot)
    # The process of the tokenizer takes as long to start as MLX.
    starter = Starter()
    starter.prepare()
    with offline():
        from mlxk2.chat import assistant as chat  # noqa: PLC0415 - MLX takes a second
    assistant = chat.Assistant.load(
        snapshot.path,
        name=snapshot.name,
        adapter=args.adapter,
        use_template=not args.no_chat_template,
        sampling=sampling,
        max_tokens=args.max_tokens,
        context=args.context_length,
        starter=starter,
        wired_limit=wired,
        converses=wants_chat,
    )
    if wants_chat:
        manner = {flag: getattr(args, flag) for flag in ("hide_reasoning", "no_stream", "verbose")}
        from mlxk2.chat.repl import converse  # noqa: PLC0415 - prompt_toolkit takes a tenth of a second

        converse(assistant, args.streams, args.system, **manner)
        return None
    return _data(snapshot.name, prompt, _answer(assistant, args, prompt))


def _sampling(args: Namespace) -> Sampling:
    return Sampling(
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
    )


def _prompt(args: Namespace, snapshot: Snapshot) -> str:
    """Return the prompt of the command line, else stdin's without the line end that a shell puts after it."""
    try:
        prompt: str = args.prompt if args.prompt not in (None, "-") else _read_stdin(args.streams.stdin, snapshot)
        prompt.encode()
    except UnicodeError as fault:
        raise ValidationError("The prompt is not UTF-8 text.") from fault
    if not prompt.strip():
        raise ValidationError("The prompt is empty.")
    return prompt


def _read_stdin(stdin: IO[str], snapshot: Snapshot) -> str:
    prompt = stdin.read(MAX_PROMPT_CHARACTERS + 1)
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        context = context_length(Contents(snapshot))
        holds = f", but the context of {snapshot.name} holds {context} tokens" if context else ""
        raise ContextLengthError(
            f"The prompt on stdin has more than {MAX_PROMPT_CHARACTERS} characters{holds}. Shorten the prompt."
        )
    return prompt.rstrip("\r\n")


def _check_system(system: str | None) -> None:
    try:
        (system or "").encode()
    except UnicodeError as fault:
        raise ValidationError("The system prompt is not UTF-8 text.") from fault


def _answer(assistant: Assistant, args: Namespace, prompt: str) -> Answer:
    whole = args.json or args.no_stream
    printer = Printer(args.streams.stdout, hide_reasoning=args.hide_reasoning, whole=whole)
    answer = assistant.reply(_messages(args.system, prompt), printer.show)
    if not args.json:
        printer.end(interrupted=answer.finish_reason == "interrupted")
    if args.verbose:
        args.streams.stderr.write(f"{answer.statistics}\n")
    return answer


def _messages(system: str | None, prompt: str) -> list[Message]:
    first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": prompt}]


def _data(name: str, prompt: str, answer: Answer) -> RunData:
    return {
        "model": name,
        "prompt": prompt,
        "response": answer.response,
        "reasoning": answer.reasoning,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "tokens_generated": answer.tokens,
        "generation_time_s": round(answer.seconds, 6),
        "tokens_per_second": round(answer.tokens_per_second, 3),
    }
