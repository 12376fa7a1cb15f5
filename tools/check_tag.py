"""Check before a release that the tag matches the version: `python tools/check_tag.py v2.0.0`."""

from __future__ import annotations

import sys

import mlxk2


def main() -> int:
    """Compare tag and version, and return the exit status: 1 if they differ, 2 without a tag."""
    if len(sys.argv) != 2:
        print("Name the tag: python tools/check_tag.py v2.0.0", file=sys.stderr)
        return 2
    if sys.argv[1] != f"v{mlxk2.__version__}":
        print(f"The tag is {sys.argv[1]}, but the version is {mlxk2.__version__}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
