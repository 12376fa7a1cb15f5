"""Draw `docs/session.svg`, the README's picture of a terminal, from real commands and their output.

    python tools/draw_session.py

The cache in the picture is made by this program: two copies of the demo model, one of them truncated.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pexpect
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "session.svg"
COLUMNS = 96
COMMANDS = (
    'mlxk2 run demo "What is the capital of France?" --temperature 0',
    'mlxk2 run demo "And what is 7 + 8?" --system "Think before you answer." --temperature 0',
    "mlxk2 list --health",
    "mlxk2 health",
)
# The picture must not fetch anything from the network, so remove the web fonts.
_WEB_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def main() -> None:
    """Run the commands and write the picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as home:
        make_cache(Path(home) / "hub")
        for command in COMMANDS:
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
            console.print(Text.from_ansi(output(command, home)))
    PICTURE.write_text(_WEB_FONTS.sub("", console.export_svg(title="mlxk2", theme=MONOKAI)), encoding="utf-8")


def make_cache(cache_dir: Path) -> None:
    """Make two models from the demo's files: one complete, one with truncated weights."""
    for name, commit, size in (("models--me--tiny-chat", "a", None), ("models--me--half-done", "b", 1_000_000)):
        snapshot = cache_dir / name / "snapshots" / (commit * 40)
        shutil.copytree(ROOT / "mlxk2" / "demo", snapshot)
        os.utime(snapshot)
        if size is not None:
            os.truncate(snapshot / "model.safetensors", size)


def output(command: str, home: str) -> str:
    """Return the output of a command on a terminal, including colours."""
    environment = {**os.environ, "HF_HOME": home, "XDG_CACHE_HOME": home, "TERM": "xterm-256color"}
    environment["COLUMNS"] = str(COLUMNS)
    environment["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    printed = str(pexpect.run(command, env=environment, dimensions=(40, COLUMNS), encoding="utf-8", timeout=60))
    return printed.replace("\r\n", "\n")


if __name__ == "__main__":
    main()
