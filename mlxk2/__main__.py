"""Where the program begins, as `mlxk2`, `mlxk-json` or `python -m mlxk2`."""

import os
import signal
import sys
import time
from importlib import import_module
from types import FrameType

from mlxk2 import VERSION_LINE

INTERRUPTED = 130  # the exit code of errors.InterruptedByUser, which is not imported yet
# Ctrl-C pressed again within this time is part of the first one: the program is ending already.
_SAME_PRESS_SECONDS = 1.0


class _Interrupt:
    """The handler of Ctrl-C: the first one raises KeyboardInterrupt, one that comes much later ends the program.

    To raise it again while the first one is being handled would end the program with a traceback.
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
        # What runs in the background may be deaf to Ctrl-C, and stays so.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _Interrupt())
        code = _run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return INTERRUPTED
    return code


def _run() -> int:
    if sys.argv[1:] == ["--version"] and _prints(VERSION_LINE):
        return 0
    code: int = import_module("mlxk2.cli.main").main()
    return code


def _prints(line: str) -> bool:
    """Whether a line could be printed with nothing else imported, which takes several times longer.

    Installers and editors ask for the version all the time. Where stdout is gone or full, the program knows what to do.
    """
    try:
        os.write(sys.stdout.fileno(), f"{line}\n".encode())  # past the buffer, which would keep what can't be written
    except (AttributeError, OSError):  # the shell's `>&-` leaves no stream at all
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
