"""The start of the program, as `mlxk2`, `mlxk-json` or `python -m mlxk2`."""

import os
import signal
import sys
import time
from types import FrameType

from mlxk2 import VERSION_LINE

INTERRUPTED = 130  # Equals errors.OperationCancelled.exit_code; importing that module here would slow every start.
# A second Ctrl-C within this time is ignored, because the first one is already ending the program.
_SAME_PRESS_SECONDS = 1.0


class _Interrupt:
    """Handles Ctrl-C: the first press raises KeyboardInterrupt, a later press ends the program at once.

    A second KeyboardInterrupt during the handling of the first one would end the program with a traceback.
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
        # A shell can start a background program with Ctrl-C ignored; that setting stays.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _Interrupt())
        if sys.argv[1:] == ["--version"] and _try_print(VERSION_LINE):
            code = 0
        else:
            from mlxk2.cli.main import main as run_command_line  # noqa: PLC0415 - `--version` starts faster without it

            code = run_command_line()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = INTERRUPTED
    if "mlx.core" in sys.modules:
        # The thread that owns MLX may still compute what Ctrl-C has ended. MLX may also abort a process that ends
        # while its threads do.
        from mlxk2.cli.main import leave  # noqa: PLC0415 - it is imported already

        leave(code)
    return code


def _try_print(line: str) -> bool:
    """Print a line without importing anything, and return whether that was possible.

    Installers and editors ask for the version often, and importing the program takes several times longer. When stdout
    is closed or its disk is full, the program prints the error.
    """
    try:
        # A write through the buffer would leave the line there after an error, and print it twice.
        os.write(sys.stdout.fileno(), f"{line}\n".encode())
    except (AttributeError, OSError):  # After the shell's `>&-`, sys.stdout is None.
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
