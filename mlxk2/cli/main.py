"""The program: parse the command line, run a command, print its data or its error.

Only this module and `__main__` print and end the process; `__main__` prints the version without importing this module.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from io import UnsupportedOperation
from typing import IO

from mlxk2.cli import parser
from mlxk2.cli.outlet import MAX_WAIT_SECONDS, Outlet
from mlxk2.cli.progress import bar
from mlxk2.commands.context import Context, Data, Failed, Streams
from mlxk2.errors import CommandError, MlxkError, OperationCancelled, OperationError, remedy, system_message
from mlxk2.formatting import printable, reason_of
from mlxk2.sleep import NoSleep

_MAX_MATCHES = 20  # For people; JSON lists all matches.
DEBUG_VARIABLE = "MLXK2_DEBUG"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code."""
    typed = sys.argv[1:] if argv is None else argv
    # After the shell's `>&-`, the streams are None.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 - open until the program ends
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # Names can contain characters that the terminal's encoding lacks; print these as escapes.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = _run(typed)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        return 0
    except OSError as error:
        _discard(sys.stdout)
        return _report(error, [])
    return code


def _run(typed: Sequence[str]) -> int:
    """Run a command line and return the exit code; raise OSError if stdout can't be written."""
    try:
        try:
            args = parser.parse(typed, os.environ)
        except SystemExit:
            return 0  # argparse has printed the help.
        command = import_module(f"mlxk2.commands.{args.module}")
        options = command.Options(**{name: getattr(args, name) for name in command.Options._fields})
        is_quiet = args.json or getattr(args, "quiet", False)
        context = Context(
            streams=Streams(sys.stdin, sys.stdout, sys.stderr),
            environment=os.environ,
            is_json=args.json,
            progress=partial(bar, sys.stderr, sys.stderr.isatty() and not is_quiet),
            no_sleep=NoSleep(),
            announce=partial(_announce, args.command, options),
            detach=detach,
            leave=leave,
        )
        data: Data | None = command.run(options, context)
        text = "" if data is None else _render(args.command, options, context, data)
    except OSError as error:
        sys.stdout.flush()  # Raises the error again if stdout was its source.
        if isinstance(error, BrokenPipeError) and not _has_reader(sys.stdout):
            raise
        return _report(error, typed)
    except Failed as failed:
        return _report(failed.error, typed, failed.data)
    # Report every exception as an MlxkError, also a panic of a Rust library, which is not an Exception.
    except BaseException as error:  # noqa: BLE001
        return _report(error, typed)
    sys.stdout.write(text)
    has_code = data is not None and hasattr(command, "exit_code")
    code: int = command.exit_code(options, data) if has_code else 0
    return code


def _discard(stream: IO[str]) -> None:
    # The reader is gone, or the disk is full. Keep Python from writing the rest when it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _has_reader(stream: IO[str]) -> bool:
    """Return whether a stream still has a reader, without writing to it."""
    poll = select.poll()
    try:
        # macOS reports that the reader is gone only if some event is requested.
        poll.register(stream, select.POLLOUT)
    except UnsupportedOperation:
        return True  # The stream writes to memory.
    return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _announce(command: str, options: object, context: Context, data: Data) -> None:
    """Print the data of a command that continues after that."""
    # Don't use sys.stdout: a library that another thread imports can have replaced it.
    _, stdout, stderr = context.streams
    stdout.write(_render(command, options, context, data))
    if isinstance(stdout, Outlet) and isinstance(stderr, Outlet):
        stdout.deliver(MAX_WAIT_SECONDS)
        stdout.pass_on_to(stderr)
    else:
        stdout.flush()


def detach(is_announced: bool) -> Streams:
    """Replace stdout and stderr by streams that never wait for their readers, and return them.

    If the data are already printed, stdout has its JSON document, so text that libraries print goes to stderr.
    """
    sys.stdout, sys.stderr = stdout, stderr = Outlet(sys.stdout), Outlet(sys.stderr)
    if is_announced:
        stdout.pass_on_to(stderr)
    return Streams(sys.stdin, stdout, stderr)  # type: ignore[arg-type] # They have all methods that commands call.


def leave(code: int) -> None:
    """End the process at once, because a command has threads that can run for a long time."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Outlet):
            stream.drain(MAX_WAIT_SECONDS)
        else:
            with suppress(OSError):
                stream.flush()
    os._exit(code)


def _render(command: str, options: object, context: Context, data: Data) -> str:
    """Return a command's data as JSON or as text for people."""
    if context.is_json:
        return _envelope("success", command, data, None)
    from mlxk2.cli.render import render  # noqa: PLC0415 - it imports rich and other modules that JSON does not need

    return render(command, options, context, data)


def _envelope(status: str, command: str, data: Data | None, error: Mapping[str, object] | None) -> str:
    envelope = {"status": status, "command": command, "data": data, "error": error}
    indent = 2 if sys.stdout.isatty() else None
    return json.dumps(envelope, indent=indent, allow_nan=False) + "\n"


def _report(exception: BaseException, typed: Sequence[str], data: Data | None = None) -> int:
    """Print an exception, as a JSON envelope or as lines on stderr, and return the exit code."""
    if os.environ.get(DEBUG_VARIABLE):
        sys.excepthook(type(exception), exception, exception.__traceback__)
    error = _as_error(exception)
    if "--json" in typed:
        command = parser.named_command(typed) or "version"
        described = {"type": error.type, "message": error.message, **error.details}
        sys.stdout.write(_envelope("error", command, data, described))
        return error.exit_code
    lines = [error.usage.rstrip("\n")] if isinstance(error, CommandError) and error.usage else []
    lines.append(printable(f"Error: {error.message}", keep="\n"))
    if hint := error.details.get("hint"):
        lines.append(printable(str(hint), keep="\n"))
    matches = error.details.get("matches") or error.details.get("available_hashes")
    if isinstance(matches, list):
        lines += [f"  {printable(str(match))}" for match in matches[:_MAX_MATCHES]]
        if more := len(matches[_MAX_MATCHES:]):
            lines.append(f"  … and {more:,} more; --json lists them all")
    try:
        sys.stderr.writelines(f"{line}\n" for line in lines)
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)  # The reader is gone; the exit code still reports the failure.
    return error.exit_code


def _as_error(exception: BaseException) -> MlxkError:
    """Return the MlxkError for an exception."""
    if isinstance(exception, MlxkError):
        return exception
    if isinstance(exception, KeyboardInterrupt):
        return OperationCancelled("Interrupted.")
    if isinstance(exception, OSError) and exception.strerror:
        # Show only the last name of the path, because the folders before it can be private.
        path = exception.filename
        name = os.path.basename(os.fsdecode(path).rstrip("/")) if isinstance(path, str | bytes | os.PathLike) else ""
        advice = remedy(exception)
        return OperationError(
            f"The operating system refused{f' {name!r}' if name else ''}: {system_message(exception)}.",
            hint=advice and f"{advice[0].upper()}{advice[1:]}.",
        )
    reason = f": {reason_of(exception)}" if str(exception).strip() else ""
    return OperationError(f"Unexpected {type(exception).__name__}{reason}. Set {DEBUG_VARIABLE}=1 to see where.")
