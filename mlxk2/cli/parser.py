"""The parser of the command line: every command, its arguments, and one sentence of help for each."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from mlxk2.errors import CommandError
from mlxk2.formatting import cut

COMMANDS = ("list", "show", "health", "pull", "rm", "clone", "push", "run", "serve", "server", "completion")
ALPHA_COMMANDS = ("clone", "push")
HELP_COMMAND = "help"
DEFAULT_COLUMNS = 100
_MAX_DIGITS = 25  # Longer numbers exceed every limit of the program.
# Characters of an unknown command that an error repeats.
_MAX_SHOWN_CHARACTERS = 40
ALPHA_VARIABLE = "MLXK2_ENABLE_ALPHA_FEATURES"
# The JSON API calls the command `serve` by the name `server`; all other commands have the same name there.
API_NAMES = {"serve": "server"}

Subparsers = Any  # The type that add_subparsers returns is private in argparse.


class _Help(argparse.HelpFormatter):
    """Prints a usage of one line, because the options are listed and explained below it."""

    _SOME = argparse.Action([], "options", nargs="?")

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[Any],
        prefix: str | None = None,
    ) -> None:
        arguments = [action for action in actions if not action.option_strings]
        super().add_usage(usage, [self._SOME, *arguments], groups, prefix)


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises CommandError instead of printing its usage and exiting."""

    def _get_formatter(self) -> argparse.HelpFormatter:
        # argparse calls this for every argument. Without a width it would import shutil, which is slow.
        try:
            width = os.get_terminal_size().columns - 2
        except OSError:
            width = DEFAULT_COLUMNS
        return _Help(self.prog, width=width)

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse itself ignores errors such as a full disk.
        if file:
            file.write(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            hint = _suggest(value, [*COMMANDS, HELP_COMMAND]) or "`mlxk2 help` lists the commands."
            message = f"There is no command {cut(value, _MAX_SHOWN_CHARACTERS)!r}."
            raise CommandError(message, usage=self.format_usage(), hint=hint)
        super()._check_value(action, value)

    def _match_arguments_partial(self, actions: Sequence[argparse.Action], arg_strings_pattern: str) -> list[int]:
        # In `run demo --seed 1 Hi` the prompt follows an option. Before Python 3.13.1, argparse decides at the option
        # that there is no prompt; later versions behave like this code.
        counts = super()._match_arguments_partial(actions, arg_strings_pattern)
        while counts and counts[-1] == 0 and arg_strings_pattern[sum(counts) :].startswith("O"):
            counts.pop()
        return counts

    def error(self, message: str) -> NoReturn:
        raise CommandError(message[:1].upper() + message[1:], usage=self.format_usage())


def parse(argv: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """Return the command line as a namespace with `command` and `module`; raise CommandError when it is wrong.

    Print the help where it is asked for, and raise SystemExit.
    """
    is_alpha = environment.get(ALPHA_VARIABLE) == "1"
    parser = _grammar(has_alpha=True)
    if _first_word(argv) == HELP_COMMAND:
        argv = [*(word for word in argv if word != HELP_COMMAND), "--help"]
    command = named_command(argv)
    if command in ALPHA_COMMANDS and not is_alpha:
        with suppress(CommandError):
            parser.parse_known_args(argv)  # prints the help if it is asked for
        raise CommandError(f"`{command}` is an alpha feature; to enable it, set {ALPHA_VARIABLE}=1.")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        raise _unrecognized(args, unknown)
    if args.version:
        args.command = args.module = "version"
    elif args.command is None:
        raise CommandError("A command is needed, such as: mlxk2 list", usage=parser.format_help())
    elif args.command == "completion":
        args.grammar = _grammar(has_alpha=is_alpha)
    return args


def _unrecognized(args: argparse.Namespace, unknown: Sequence[str]) -> CommandError:
    """Return the error for words that mean nothing, with the option that was probably meant."""
    known = args.parser._option_string_actions
    # An option may stand in one word with its value: --seed=1.
    options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    if misplaced := next((word for word in options if word in known), None):
        hint: str | None = f"Write {misplaced} after the command."
    elif args.command == "run" and not options:
        hint = 'A prompt of several words needs quotes: mlxk2 run MODEL "several words"'
    else:
        hint = next(filter(None, (_suggest(word, known) for word in options)), None)
    return CommandError(f"Unrecognized arguments: {' '.join(unknown)}", usage=args.parser.format_usage(), hint=hint)


def _suggest(word: str, known: Collection[str]) -> str | None:
    """Return the question whether a similar word was meant; None if there is none."""
    from difflib import get_close_matches  # noqa: PLC0415 - only mistakes need it

    begun = [each for each in known if len(word) > len("--") and each.startswith(word)]
    meant = begun or get_close_matches(word, known, n=1)
    return f"Did you mean {' or '.join(meant)}?" if meant else None


def named_command(argv: Sequence[str]) -> str | None:
    """Return the command in a command line, even if the rest is wrong; None if there is no known command."""
    first = _first_word(argv)
    return API_NAMES.get(first or "", first) if first in COMMANDS else None


def _first_word(argv: Sequence[str]) -> str | None:
    return next((word for word in argv if not word.startswith("-")), None)


def _grammar(*, has_alpha: bool) -> _Parser:
    """Return the parser of the whole command line, with or without the alpha commands."""
    parser = _Parser(
        prog="mlxk2",
        description="Manage, run and serve language models on Apple's MLX.",
        epilog="A model is named org/model, by a part of its name, model@hash or ./folder; `demo` is built in. "
        f"`mlxk2 help COMMAND` explains a command. The alpha commands need {ALPHA_VARIABLE}=1.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    parser.set_defaults(command=None, module=None, parser=parser)
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser, prog="mlxk2")
    _add_cache_commands(commands)
    if has_alpha:
        _add_alpha_commands(commands)
    _add_run(commands)
    _add_serve(commands, "serve", help="serve models over an OpenAI-compatible API")
    _add_serve(commands, "server", help="the same as serve")

    help = "print a script that completes commands and models in a shell"
    example = "mlxk2 completion fish > ~/.config/fish/completions/mlxk2.fish"
    completion = _command(commands, "completion", help, example)
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that uses the script")
    return parser


def _command(commands: Subparsers, name: str, help: str, example: str, module: str | None = None) -> _Parser:
    enabling = f" To enable it, set {ALPHA_VARIABLE}=1." if name in ALPHA_COMMANDS else ""
    parser: _Parser = commands.add_parser(
        name,
        help=help,
        description=f"{help[:1].upper()}{help[1:]}.{enabling}",
        epilog=f"Example: {example}",
        allow_abbrev=False,
    )
    # SUPPRESS keeps the value of a --json before the command.
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
    parser.set_defaults(command=API_NAMES.get(name, name), module=module or name, parser=parser)
    return parser


def _whole(text: str) -> int:
    """Parse a whole number; refuse digits of other scripts, which `int` accepts."""
    if re.fullmatch("[+-]?[0-9]+", text) is None:
        raise _not_a("whole number", text)
    if len(text) > _MAX_DIGITS:
        raise argparse.ArgumentTypeError(f"the number {cut(text, _MAX_DIGITS)!r} is too large")
    return int(text)


def _decimal(text: str) -> float:
    """Parse a finite number."""
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", text, re.IGNORECASE) is None:
        raise _not_a("number", text)
    if not math.isfinite(value := float(text)):
        raise argparse.ArgumentTypeError(f"the number {cut(text, _MAX_DIGITS)!r} is too large")
    return value


def _not_a(kind: str, text: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{cut(text, _MAX_DIGITS)!r} is not a {kind} in the digits 0 to 9")


def _add_cache_commands(commands: Subparsers) -> None:
    """Add the commands for models in the cache, in the order in which the help lists them."""
    parser = _command(commands, "list", "list the models in the cache", "mlxk2 list --health")
    help = "list only models whose names contain this text or match this glob: 'mlx-community/*4bit*'"
    parser.add_argument("pattern", nargs="?", help=help)
    help = "list the largest or the latest model first (default: name)"
    parser.add_argument("--sort", default="name", choices=("name", "size", "modified"), help=help)
    parser.add_argument("--all", action="store_true", help="list all models, not only MLX chat models")
    parser.add_argument("--health", action="store_true", help="show whether each model is intact and runs here")
    parser.add_argument("--verbose", action="store_true", help="list all MLX models, with full names and framework")

    parser = _command(commands, "show", "show one model in detail", "mlxk2 show demo --files")
    parser.add_argument("model", help="a model of the cache, ./folder, or demo")
    parser.add_argument("--files", action="store_true", help="list its files")
    parser.add_argument("--config", action="store_true", help="print its config.json")

    parser = _command(commands, "health", "check that models are complete and undamaged", "mlxk2 health --deep")
    parser.add_argument("pattern", nargs="?", help="check only this model (default: all)")
    parser.add_argument("--deep", action="store_true", help="also hash every file, to find changed bytes")
    help = "exit with 1 if a model is unhealthy or missing (default: exit with 0)"
    parser.add_argument("--exit-code", action="store_true", help=help)

    help = "download a model, or repair one"
    parser = _command(commands, "pull", help, "mlxk2 pull mlx-community/Qwen3-0.6B-4bit")
    parser.add_argument("model", help="org/model, or a name under mlx-community; @revision for one revision")
    parser.add_argument("--force", action="store_true", help="hash every file, and fetch damaged ones again")

    help = "remove a model, or one revision of it, from the cache"
    parser = _command(commands, "rm", help, "mlxk2 rm org/model --dry-run")
    parser.add_argument("model", help="org/model, or model@hash for one revision")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    help = "do not ask, and remove it even while a download of it is running"
    parser.add_argument("-f", "--force", action="store_true", help=help)
    parser.add_argument("--dry-run", action="store_true", help="only print what would be removed")


def _add_alpha_commands(commands: Subparsers) -> None:
    """Add the commands that work on folders of the user."""
    help = "make an editable copy of a model (alpha)"
    parser = _command(commands, "clone", help, "mlxk2 clone org/model ./my-model")
    parser.add_argument("model", help="org/model, in the cache or on the hub")
    parser.add_argument("target_dir", metavar="DIR", help="a new or empty folder")
    parser.add_argument("--branch", help="the branch to clone")
    parser.add_argument("--no-health-check", action="store_true", help="clone even a damaged model")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")

    help = "upload a folder to the hub, and delete on the hub what the folder lacks (alpha)"
    parser = _command(commands, "push", help, "mlxk2 push ./my-model org/model --private")
    parser.add_argument("local_dir", metavar="DIR", help="the folder; other files are deleted from the branch")
    parser.add_argument("repo_id", metavar="ORG/MODEL", help="the repo on the hub")
    parser.add_argument("--private", action="store_true", help="required to upload: a new repo is private")
    parser.add_argument("--create", action="store_true", help="create the (private) repo or the branch if missing")
    parser.add_argument("--branch", default="main", help="the branch to push to (default: main)")
    parser.add_argument("--commit", default="mlx-knife push", metavar="MESSAGE", help="the commit's message")
    parser.add_argument("--check-only", action="store_true", help="only check the folder, without the network")
    help = "with --check-only: exit with 1 if the folder is unhealthy (default: exit with 0)"
    parser.add_argument("--exit-code", action="store_true", help=help)
    parser.add_argument("--dry-run", action="store_true", help="compare with the hub, but upload nothing")
    parser.add_argument("--verbose", action="store_true", help="show the hub's log and the commit's URL")


def _add_run(commands: Subparsers) -> None:
    help = "ask a model, or chat with it"
    parser = _command(commands, "run", help, 'mlxk2 run demo "What is the capital of France?"')
    parser.add_argument("model", help="a model of the cache, ./folder, or demo")
    help = "the question; text on stdin is put before it; - reads only stdin; without it, a chat starts"
    parser.add_argument("prompt", nargs="?", help=help)
    help = "most tokens to generate (default: the rest of the model's context)"
    parser.add_argument("--max-tokens", type=_whole, metavar="N", help=help)
    _add_context_length(parser)
    help = "0 is greedy (default: 0.7); --temp is the same"
    parser.add_argument("--temperature", type=_decimal, default=0.7, metavar="T", help=help)
    parser.add_argument("--temp", dest="temperature", type=_decimal, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--top-p", type=_decimal, default=0.9, metavar="P", help="nucleus sampling (default: 0.9)")
    parser.add_argument(
        "--top-k", type=_whole, default=0, metavar="N", help="sample from the N likeliest tokens (default: all)"
    )
    help = "least probability, relative to the likeliest token (default: 0)"
    parser.add_argument("--min-p", type=_decimal, default=0.0, metavar="P", help=help)
    help = "1 means no penalty (default: 1.1)"
    parser.add_argument("--repetition-penalty", type=_decimal, default=1.1, metavar="R", help=help)
    parser.add_argument("--seed", type=_whole, metavar="N", help="the same seed gives the same text")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt")
    parser.add_argument("--adapter", metavar="DIR", help="a folder with a LoRA adapter")
    parser.add_argument("--no-stream", action="store_true", help="print the answer when it is complete")
    parser.add_argument("--no-chat-template", action="store_true", help="continue the prompt as plain text")
    parser.add_argument("--hide-reasoning", action="store_true", help="print only the answer")
    parser.add_argument("--verbose", action="store_true", help="print token counts and speed to stderr")


def _add_context_length(parser: argparse.ArgumentParser) -> None:
    help = "tokens of the model's context (default: from its files)"
    parser.add_argument("--context-length", type=_whole, metavar="N", help=help)


def _add_serve(commands: Subparsers, name: str, help: str) -> None:
    parser = _command(commands, name, help, f"mlxk2 {name} --model demo", module="serve")
    parser.add_argument("--model", help="load this model at the start")
    parser.add_argument("--adapter", metavar="DIR", help="a folder with a LoRA adapter")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=_whole, default=8000, help="the port to listen on (default: 8000)")
    help = "most tokens of a completion (default: half the context)"
    parser.add_argument("--max-tokens", type=_whole, metavar="N", help=help)
    _add_context_length(parser)
    parser.add_argument("--api-key", metavar="KEY", help="a key that clients must send; MLXK2_API_KEY is safer")
    help = "another name that clients use for this machine; can be repeated"
    parser.add_argument("--allowed-host", action="append", metavar="NAME", help=help)
    parser.add_argument(
        "--cors-origin", action="append", metavar="ORIGIN", help="the origin of web pages that may call"
    )
    help = "completions at the same time (default: 64)"
    parser.add_argument("--max-concurrent", type=_whole, default=64, metavar="N", help=help)
    help = "requests that may wait (default: 256)"
    parser.add_argument("--max-queue", type=_whole, default=256, metavar="N", help=help)
    help = "memory for earlier prompts, such as 2GB (default: an eighth of the memory, at most half of the free part)"
    parser.add_argument("--prompt-cache-bytes", metavar="SIZE", help=help)
    levels = ("critical", "error", "warning", "info", "debug")
    help = f"one of {', '.join(levels)} (default: info)"
    parser.add_argument("--log-level", default="info", choices=levels, metavar="LEVEL", help=help)
    parser.add_argument("--reload", action="store_true", help="restart when the code changes")
    parser.add_argument("--verbose", action="store_true", help="log every request, also of /health, at every level")
