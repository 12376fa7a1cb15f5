"""`python -m mlxk2` is the same program as `mlxk2`."""

import sys

from mlxk2.cli import main

if __name__ == "__main__":
    sys.exit(main())
