"""The program: parse, dispatch, and turn data or an error into an envelope or text.

Nothing else prints or exits, but for `__main__`, which prints the version without importing this.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from io import UnsupportedOperation
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from mlxk2.cli import parser
from mlxk2.cli.outlet import LAST_WAIT, Outlet
from mlxk2.errors import CommandError, InterruptedByUser, MlxkError, OperationError, remedy, words
from mlxk2.formatting import printable
from mlxk2.sleep import NoSleep

if TYPE_CHECKING:
    from mlxk2.progress import Advance

# What people read of a list; JSON has it all.
_MAX_MATCHES = 20
DEBUG_VARIABLE = "MLXK2_DEBUG"


class Streams(NamedTuple):
    """Where a command reads and writes while it works."""

    stdin: IO[str]
    stdout: IO[str]
    stderr: IO[str]

    def warn(self, text: str) -> None:
        """Tell the user, in a line, what does not end the command."""
        self.stderr.write(f"Warning: {printable(text)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    _prepare_streams()
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        return 0
    except OSError as error:
        _discard(sys.stdout)
        return _report(_as_error(error), [])
    return code


def _prepare_streams() -> None:
    # The shell's `>&-` leaves no stream at all.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 - open until the program ends
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A name in any script must be printable on any terminal.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _discard(stream: IO[str]) -> None:
    # The reader has gone, or the disk is full: what is left must not be tried again when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _has_reader(stream: IO[str]) -> bool:
    """Whether a stream still goes anywhere; a write would tell too, but might arrive."""
    poll = select.poll()
    try:
        # Without any event macOS reports nothing, not even that the reader has gone.
        poll.register(stream, select.POLLOUT)
    except UnsupportedOperation:
        return True  # it goes into memory
    return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _run(words: Sequence[str]) -> int:
    try:
        try:
            args = parser.parse(words, os.environ)
        except SystemExit:
            return 0  # argparse has printed its help
        data = _execute(args)
        text = _rendered(args, data)
    except OSError as error:
        sys.stdout.flush()  # fails again if it was stdout that failed
        if isinstance(error, BrokenPipeError) and not _has_reader(sys.stdout):
            raise
        return _report(_as_error(error), words)
    # Every fault ends here as one error of the tree, also a panic of a Rust library, which is no Exception.
    except BaseException as error:  # noqa: BLE001
        return _report(_as_error(error), words)
    sys.stdout.write(text)
    return InterruptedByUser.exit_code if (data or {}).get("finish_reason") == "interrupted" else 0


def _execute(args: argparse.Namespace) -> Mapping[str, Any] | None:
    if args.version:
        args.command = "version"
        args.module = "version"
    args.streams = Streams(sys.stdin, sys.stdout, sys.stderr)
    is_quiet = args.json or getattr(args, "quiet", False)
    args.progress = _silent if is_quiet or not sys.stderr.isatty() else _bar
    args.announce = lambda data: _announce(args, data)
    args.no_sleep = NoSleep()
    args.leave = leave
    args.detach = detach
    result: Mapping[str, Any] | None = import_module(f"mlxk2.commands.{args.module}").run(args)
    return result


def _announce(args: argparse.Namespace, data: Mapping[str, Any]) -> None:
    """Print the data of a command that goes on after it has them."""
    # Not to sys.stdout: a library that is being imported in another thread may have its place.
    stdout = args.streams.stdout
    stdout.write(_rendered(args, data))
    if isinstance(stdout, Outlet):
        stdout.deliver(LAST_WAIT)
        stdout.pass_on_to(args.streams.stderr)
    else:
        stdout.flush()


def detach(*, is_announced: bool = False) -> Streams:
    """Let no output wait for its reader, for a command that must go on without one; return the streams.

    When the data are announced, stdout has its document, and what libraries print goes to stderr.
    """
    sys.stdout, sys.stderr = stdout, stderr = Outlet(sys.stdout), Outlet(sys.stderr)
    if is_announced:
        stdout.pass_on_to(stderr)
    return Streams(sys.stdin, stdout, stderr)  # type: ignore[arg-type] # they have all that is called of a text stream


def leave(code: int) -> None:
    """End the process at once, for a command some thread of which can't be waited for."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Outlet):
            stream.drain(LAST_WAIT)
        else:
            with suppress(OSError):
                stream.flush()
    os._exit(code)


def _rendered(args: argparse.Namespace, data: Mapping[str, Any] | None) -> str:
    if data is None:
        return ""
    if args.json:
        return _envelope("success", args.command, data, None)
    text: str = import_module("mlxk2.cli.render").render(args, data, args.streams.stdout)
    return text


def _envelope(status: str, command: str, data: Mapping[str, Any] | None, error: Mapping[str, Any] | None) -> str:
    envelope = {"status": status, "command": command, "data": data, "error": error}
    indent = 2 if sys.stdout.isatty() else None
    return json.dumps(envelope, indent=indent, allow_nan=False) + "\n"


def _report(error: MlxkError, words: Sequence[str]) -> int:
    """Say what went wrong, as an envelope or as lines on stderr; the exit code."""
    if os.environ.get(DEBUG_VARIABLE):
        sys.excepthook(type(error), error, error.__traceback__)
    if "--json" in words:
        command = getattr(error, "command", None) or parser.named_command(words) or "version"
        described = {"type": error.type, "message": error.message, **error.details}
        sys.stdout.write(_envelope("error", command, error.data, described))
        return error.exit_code
    try:
        sys.stderr.writelines(f"{line}\n" for line in _lines(error))
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)  # nobody is left to be told, and the exit code still tells
    return error.exit_code


def _lines(error: MlxkError) -> Iterator[str]:
    """An error as people read it."""
    if isinstance(error, CommandError) and error.usage:
        yield error.usage.rstrip("\n")
    yield printable(f"Error: {error.message}", keep="\n")
    if hint := error.details.get("hint"):
        yield printable(str(hint), keep="\n")
    matches = error.details.get("matches") or error.details.get("available_hashes")
    if isinstance(matches, list):
        yield from (f"  {printable(str(match))}" for match in matches[:_MAX_MATCHES])
        if more := len(matches[_MAX_MATCHES:]):
            yield f"  … and {more:,} more; --json has them all"


def _as_error(error: BaseException) -> MlxkError:
    """The error of the tree that an exception stands for."""
    if isinstance(error, MlxkError):
        return error
    if isinstance(error, KeyboardInterrupt):
        mapped: MlxkError = InterruptedByUser("Interrupted.")
    elif isinstance(error, OSError) and error.strerror:
        advice = remedy(error)
        mapped = OperationError(
            f"The operating system refused{_thing(error)}: {words(error)}.",
            hint=advice and f"{advice[0].upper()}{advice[1:]}.",
        )
    else:
        mapped = OperationError(f"Unexpected {type(error).__name__}; set {DEBUG_VARIABLE}=1 to see where.")
    mapped.__cause__ = error
    return mapped


def _thing(error: OSError) -> str:
    """The last name in the path that an error is about; the folders before it are no business of an envelope's."""
    path = error.filename
    name = os.path.basename(os.fsdecode(path).rstrip("/")) if isinstance(path, str | bytes | os.PathLike) else ""
    return f" {name!r}" if name else ""


def _bar(title: str, total: int) -> AbstractContextManager[Advance]:
    bar: AbstractContextManager[Advance] = import_module("mlxk2.progress").bar(title, total, sys.stderr)
    return bar


def _silent(title: str, total: int) -> AbstractContextManager[Advance]:  # noqa: ARG001 - the signature of _bar
    return nullcontext(lambda _: None)
