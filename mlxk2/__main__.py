"""Where the program begins, as `mlxk2`, `mlxk-json` or `python -m mlxk2`."""

import os
import sys
from importlib import import_module

from mlxk2 import VERSION_LINE


def main() -> int:
    """Run the command line and return the exit code."""
    if sys.argv[1:] == ["--version"] and _prints(VERSION_LINE):
        return 0
    code: int = import_module("mlxk2.cli").main()
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
