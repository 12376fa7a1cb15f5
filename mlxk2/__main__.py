"""Where the program begins, as `mlxk2`, `mlxk-json` or `python -m mlxk2`."""

import sys
from importlib import import_module

from mlxk2 import __version__


def main() -> int:
    """Run the command line and return the exit code."""
    if sys.argv[1:] == ["--version"]:
        # Installers and editors ask this all the time; the rest of the program takes several times longer to import.
        sys.stdout.write(f"mlxk2 {__version__}\n")
        return 0
    code: int = import_module("mlxk2.cli").main()
    return code


if __name__ == "__main__":
    sys.exit(main())
