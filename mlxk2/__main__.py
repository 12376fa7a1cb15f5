"""The start of the program, as `mlxk2`, `mlxk-json` or `python -m mlxk2`."""

import os
import signal
import sys
import time
from types import FrameType

from mlxk2 import VERSION_LINE

INTERRUPTED = 130  # the exit code of errors.InterruptedByUser, which is not imported yet
# Ctrl-C pressed again within this time counts as the first press, which is ending the program already.
_SAME_PRESS_SECONDS = 1.0


class _Interrupt:
    """Handles Ctrl-C: the first press raises KeyboardInterrupt, a press much later ends the program at once.

    Raising it again while the first one is handled would end the program with a traceback.
    """

    def __init__(self) -> None:
        self._first: float | None = None

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if self._first is None:
            self._first = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - self._first > _SAME_PRESS_SECONDS:
            os._exit(INTERRUPTED)


def main() -> int:
    """Run the command line and return the exit code."""
    try:
        # A shell may start a program in the background so that it ignores Ctrl-C; it goes on ignoring it.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _Interrupt())
        if sys.argv[1:] == ["--version"] and _try_print(VERSION_LINE):
            code = 0
        else:
            from mlxk2.cli.main import main as run_command_line  # noqa: PLC0415 - the version alone needs none of it

            code = run_command_line()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return INTERRUPTED
    return code


def _try_print(line: str) -> bool:
    """Print a line without importing anything, and return whether that was possible.

    Installers and editors ask for the version often, and the imports of the program take several times longer. Where
    stdout is gone or full, the program itself says so.
    """
    try:
        os.write(sys.stdout.fileno(), f"{line}\n".encode())  # past the buffer, which would keep what can't be written
    except (AttributeError, OSError):  # the shell's `>&-` leaves no stream at all
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
