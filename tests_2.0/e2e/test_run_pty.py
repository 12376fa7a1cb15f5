"""`run PROMPT` on a pseudo-terminal: progress lines, signals and text that the user types early."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pexpect
import pytest
from support.starting import python_path
from support.tiny_models import BABBLE, say, write_chain

pytestmark = pytest.mark.e2e

SLOW_MODEL = Path(__file__).parent.parent / "support" / "slow_model"
LOADING, READING = "Loading the model", "Reading the prompt"
ERASED = "\r\x1b[K"
LONG = "x" * 100_000


@pytest.fixture
def paris(tmp_path: Path) -> Path:
    """Return a model that always writes Paris."""
    return write_chain(tmp_path / "paris", say("Par", "is", "!"), context=1_000_000)


def variables(home: Path, slow: str, seconds: float = 15) -> dict[str, str]:
    """Return the environment of a user's terminal; the part named by `slow` takes that many seconds."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(home),
        "TERM": "xterm",
        "LANG": "C.UTF-8",
        "PYTHONPATH": python_path(SLOW_MODEL),
        "SLOW": slow,
        "SLOW_SECONDS": str(seconds),
    }


def command(model: Path, *words: str) -> list[str]:
    """Return the command line."""
    return [sys.executable, "-m", "mlxk2", "run", str(model), *words]


def start(words: Sequence[str], environment: dict[str, str]) -> pexpect.spawn:
    """Start a program on a terminal of its own."""
    program, *arguments = words
    return pexpect.spawn(
        program, arguments, env=environment, encoding="utf-8", timeout=60, dimensions=(50, 200), echo=True
    )


def rest(child: pexpect.spawn) -> str:
    """Wait for the end of a program; return what it wrote last."""
    child.expect(pexpect.EOF)
    written: str = child.before
    assert child.getecho()
    child.close()
    return written


def wait_for_quiet(child: pexpect.spawn) -> None:
    """Wait until the terminal does not echo what is typed."""
    assert child.waitnoecho(60)


def test_the_progress_line_is_erased_when_the_answer_begins(paris: Path, tmp_path: Path) -> None:
    child = start(command(paris, "hi"), variables(tmp_path, "load", 1))
    child.expect_exact(LOADING)
    written = rest(child)
    shown, _, after = written.rpartition(ERASED)
    assert (after, child.exitstatus) == ("Paris!\r\n", 0)
    # Each progress line replaces the one before, and the last one is erased.
    assert "\n" not in shown
    assert ERASED not in shown


@pytest.mark.parametrize("words", [("--no-stream",), ("--hide-reasoning",)])
def test_the_progress_line_stays_until_text_is_shown(tmp_path: Path, words: tuple[str, ...]) -> None:
    chain = say("<think>", "x", "</think>", "Paris", ".")
    model = write_chain(tmp_path / "thinker", chain)
    written = rest(start(command(model, "hi", *words), variables(tmp_path, "load", 1)))
    assert written.rpartition(ERASED)[2].endswith("Paris.\r\n")
    assert LOADING in written


def test_progress_is_shown_while_the_answer_goes_to_a_file(paris: Path, tmp_path: Path) -> None:
    file = tmp_path / "answer"
    line = shlex.join(command(paris, LONG[:5_000])) + f" > {file}"
    child = start(["sh", "-c", line], variables(tmp_path, "prefill"))
    child.expect(READING + r": [0-9,]+ of 5,[0-9]{3} tokens")
    assert rest(child).endswith(ERASED)
    assert file.read_text() == "Paris!\n"


def test_progress_is_shown_only_on_a_capable_terminal(paris: Path, tmp_path: Path) -> None:
    slow = variables(tmp_path, "load", 1)
    assert rest(start(command(paris, "hi", "--json"), slow)).lstrip().startswith("{")
    assert rest(start(command(paris, "hi"), {**slow, "TERM": "dumb"})) == "Paris!\r\n"
    redirected = start(["sh", "-c", shlex.join(command(paris, "hi")) + " 2> /dev/null"], slow)
    assert rest(redirected) == "Paris!\r\n"
    done = subprocess.run(command(paris, "hi"), env=slow, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("Paris!\n", "")


def test_a_terminal_shows_how_much_text_came_from_stdin(paris: Path, tmp_path: Path) -> None:
    child = start(["sh", "-c", f"printf notes | {shlex.join(command(paris, 'hi'))}"], variables(tmp_path, ""))
    said = "Put 5 characters from stdin before the prompt (< /dev/null prevents it).\r\n"
    assert rest(child).replace(ERASED, "").endswith("Paris!\r\n")
    assert said in child.before


INTERRUPTED = "[Generation interrupted by user]"


@pytest.mark.parametrize(
    ("slow", "shown", "said"),
    [
        ("load", LOADING, "Error: Interrupted."),
        ("tokenize", READING, INTERRUPTED),
        ("prefill", READING, INTERRUPTED),
        ("piece", READING, INTERRUPTED),
    ],
)
def test_ctrl_c_ends_loading_and_reading_of_the_prompt(
    paris: Path, tmp_path: Path, slow: str, shown: str, said: str
) -> None:
    child = start(command(paris, LONG), variables(tmp_path, slow))
    child.expect_exact(shown)
    child.sendintr()
    written = rest(child)
    assert written.endswith(f"{ERASED}{said}\r\n")
    assert (child.exitstatus, "Paris" in written) == (130, False)


def test_ctrl_c_before_the_answer_prints_an_envelope_with_json(paris: Path, tmp_path: Path) -> None:
    child = start(command(paris, "hi", "--json"), variables(tmp_path, "tokenize"))
    wait_for_quiet(child)
    child.sendintr()
    written = rest(child)
    assert '"status": "' in written
    assert (child.exitstatus, "Paris" in written) == (130, False)


@pytest.mark.parametrize("slow", ["load", "tokenize", "prefill"])
def test_sigterm_restores_the_terminal(paris: Path, tmp_path: Path, slow: str) -> None:
    child = start(command(paris, LONG), variables(tmp_path, slow))
    child.expect_exact(LOADING if slow == "load" else READING)
    wait_for_quiet(child)
    child.kill(signal.SIGTERM)
    assert rest(child).endswith(ERASED)
    assert child.signalstatus == signal.SIGTERM


def test_an_error_restores_the_terminal(paris: Path, tmp_path: Path) -> None:
    tokenizer = json.loads((paris / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}
    (paris / "tokenizer.json").write_text(json.dumps(tokenizer))
    written = rest(start(command(paris, "hi"), variables(tmp_path, "load", 1)))
    assert LOADING in written
    assert "Error: " in written.rpartition(ERASED)[2]


def test_text_typed_during_run_goes_to_the_shell(tmp_path: Path) -> None:
    model = write_chain(tmp_path / "babble", BABBLE, context=300)
    shell = start(["bash", "--norc", "--noprofile", "-i"], {**variables(tmp_path, "load", 2), "PS1": "$ "})
    shell.sendline(shlex.join(command(model, "hi")))
    shell.expect_exact(LOADING)
    wait_for_quiet(shell)
    shell.sendline("echo $((6*7)); exit")
    written = rest(shell)
    answer, _, after = written.partition("$ ")
    assert "echo" not in answer
    assert re.search(r"[a-z]{200}\r\n(\x1b\[\?2004h)?$", answer)
    assert "echo $((6*7)); exit" in after
    assert "\r42\r\n" in after.replace("\n42", "\r42")


def test_ctrl_z_returns_the_terminal_and_fg_takes_it_back(paris: Path, tmp_path: Path) -> None:
    # `sh` does not change the modes of the terminal.
    line = f"set -m; {shlex.join(command(paris, 'hi'))}; stty -a; read go; fg; stty -a; echo the end"
    shell = start(["sh", "-c", line], variables(tmp_path, "load", 3))
    shell.expect_exact(LOADING)
    wait_for_quiet(shell)
    shell.send("\x1a")
    shell.expect(r"[ -]echo\b")
    assert shell.after.startswith(" ")
    shell.sendline("go")
    wait_for_quiet(shell)
    shell.expect_exact("Paris!\r\n")
    shell.expect(r"[ -]echo\b")
    assert shell.after.startswith(" ")
    shell.expect_exact("the end")
    rest(shell)
