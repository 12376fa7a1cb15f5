"""Put the help of every command into its page in docs/commands/.

python tools/command_pages.py --write   update the pages
python tools/command_pages.py --check   exit 1 when a page differs from the help of the program
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

PAGES = Path(__file__).parents[1] / "docs" / "commands"
COLUMNS = "88"


def update(page: str, command: str) -> str:
    """Return a command's page with the help that the program prints now."""
    begin, end = f"<!-- help of mlxk2 {command} -->\n", "<!-- end of help -->"
    before, begin, rest = page.partition(begin)
    _, end, after = rest.partition(end)
    return "".join((before, begin, f"```text\n{read_help(command)}```\n", end, after))


def read_help(command: str) -> str:
    """Return the output of `mlxk2 COMMAND --help`."""
    environment = {**os.environ, "COLUMNS": COLUMNS, "NO_COLOR": "1", "MLXK2_ENABLE_ALPHA_FEATURES": "1"}
    words = [sys.executable, "-m", "mlxk2", command, "--help"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Write or check the pages; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ways = parser.add_mutually_exclusive_group(required=True)
    ways.add_argument("--write", action="store_true", help="update the pages")
    ways.add_argument("--check", action="store_true", help="exit 1 when a page is out of date")
    args = parser.parse_args()
    stale = []
    for path in sorted(PAGES.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        new = update(page, path.stem)
        if new != page:
            stale.append(path.name)
        if args.write:
            path.write_text(new, encoding="utf-8")
    if args.check and stale:
        print(f"Out of date: {', '.join(stale)}. To update them: python tools/command_pages.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
