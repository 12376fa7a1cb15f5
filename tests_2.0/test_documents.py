"""Texts that documents copy from the program are up to date: help, figures, versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mlxk2

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "commands"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the project from its root."""
    command = [sys.executable, *words]
    environment = {**os.environ, "MLXK2_ENABLE_ALPHA_FEATURES": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_every_command_page_has_the_current_help() -> None:
    done = run("tools/command_pages.py", "--check")
    assert done.returncode == 0, done.stdout


def test_every_command_has_a_page_linked_from_the_readme() -> None:
    help_text = run("-m", "mlxk2", "--help").stdout
    commands = {path.stem for path in PAGES.glob("*.md")}
    listed = {line.split()[0] for line in help_text.splitlines() if line.startswith("    ") and line[4] != " "}
    assert listed - {"server"} == commands
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"(docs/commands/{command}.md)" in readme for command in commands)


def test_the_readme_has_the_figures_of_the_performance_page() -> None:
    assert run("benchmarks/report.py", "--check").returncode == 0


@pytest.mark.parametrize(("words", "code"), [((f"v{mlxk2.__version__}",), 0), (("v0.0.1",), 1), ((), 2)])
def test_a_tag_must_match_the_version(words: tuple[str, ...], code: int) -> None:
    assert run("tools/check_tag.py", *words).returncode == code
