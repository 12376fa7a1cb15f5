"""The interactive chat on a pseudo-terminal."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pexpect
import pytest
from support.starting import python_path
from support.tiny_models import BABBLE, say, write_chain

pytestmark = pytest.mark.e2e

# The escape code with which prompt_toolkit moves the cursor behind its prompt.
PROMPT = r"\x1b\[2C"
LEFT = "[Generation interrupted by user]"
SLOW_MODEL = Path(__file__).parent.parent / "support" / "slow_model"


def variables(home: Path) -> dict[str, str]:
    """Return the environment of a user's terminal."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(home),
        "TERM": "xterm",
        "XDG_STATE_HOME": str(home / "state"),
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.environ["PYTHONPATH"],
    }


class Terminal:
    """A chat with a model on a terminal."""

    def __init__(self, model: Path, home: Path, *words: str, slow: str | None = None, typed: str | None = None) -> None:
        """Start the chat, with a part of it made slow; type a line while the model loads, or wait for the prompt."""
        extra = {"PYTHONPATH": python_path(SLOW_MODEL), "SLOW": slow} if slow else {}
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "mlxk2", "run", str(model), *words],
            env={**variables(home), **extra},
            encoding="utf-8",
            timeout=60,
            dimensions=(50, 200),
        )
        if typed is None:
            self.child.expect(PROMPT)
        else:
            assert self.child.waitnoecho(60)
            self.type(typed)

    def type(self, line: str) -> None:
        """Type a line."""
        self.child.sendline(line)

    def ask(self, line: str, answer: str) -> None:
        """Type a line and wait for an answer and the next prompt."""
        self.type(line)
        self.child.expect_exact(answer)
        self.child.expect(PROMPT)

    def end(self) -> int | None:
        """Wait for the end of the program; return its exit code, None if a signal killed it."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        assert self.child.signalstatus is None
        code: int | None = self.child.exitstatus
        return code


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return the home of a user with no files in it."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def babble(tmp_path: Path) -> Path:
    """Return a model that never stops."""
    return write_chain(tmp_path / "babble", BABBLE, context=1_000_000)


@pytest.fixture
def paris(tmp_path: Path) -> Path:
    """Return a model that always writes Paris."""
    return write_chain(tmp_path / "paris", say("Par", "is", "!"))


def test_chat_commands_work_in_a_conversation(paris: Path, home: Path) -> None:
    terminal = Terminal(paris, home)
    terminal.ask("France?", "Paris!\r\n")
    terminal.ask("/?", "/save FILE")
    terminal.type("/stats")
    terminal.child.expect("1 turns, 4 tokens generated.* prompt [0-9.]+ tokens/s, answer [0-9.]+ tokens/s, end: stop")
    terminal.child.expect(PROMPT)
    terminal.ask("/system Be brief.", "The system prompt is set.")
    terminal.type("two\\")
    terminal.child.expect(PROMPT)
    terminal.ask("lines", "Paris!\r\n")
    terminal.type('"""')
    terminal.child.expect(PROMPT)
    terminal.type("a block")
    terminal.child.expect(PROMPT)
    terminal.ask('"""', "Paris!\r\n")
    file = home / "talk.md"
    terminal.ask(f"/save {file}", "Saved to")
    terminal.ask(f"/save {file}", "already exists and was not changed")
    terminal.ask("/clear", "cleared")
    terminal.ask(f"/load {file}", "Loaded 3 turns")
    terminal.ask(f"/save {file}2", "Saved to")
    terminal.type("/bye")
    assert terminal.end() == 0
    said = file.read_text()
    assert (home / "talk.md2").read_text() == said
    assert said.startswith("## System\n\nBe brief.\n\n## User\n\nFrance?\n\n## Assistant\n\nParis!\n")
    assert "## User\n\ntwo\nlines\n" in said
    assert "## User\n\na block\n" in said


def test_ctrl_c_ends_the_answer_but_not_the_chat(babble: Path, home: Path) -> None:
    terminal = Terminal(babble, home)
    for _ in range(2):
        terminal.type("talk")
        terminal.child.expect("[a-z]{100}")
        terminal.child.sendintr()
        terminal.child.expect_exact(LEFT)
        terminal.child.expect(PROMPT)
    terminal.ask("/stats", "2 turns")
    terminal.type("exit")
    assert terminal.end() == 0


def test_ctrl_c_on_the_input_line_discards_it_and_shows_how_to_leave(paris: Path, home: Path) -> None:
    terminal = Terminal(paris, home)
    terminal.child.sendintr()
    terminal.child.expect_exact("To leave, type /bye or press Ctrl-D.\r\n")
    terminal.child.expect(PROMPT)
    for typed in ("discarded", '"""\rdiscarded'):
        terminal.child.send(typed)
        terminal.child.expect_exact("discarded")
        terminal.child.sendintr()
        terminal.child.expect(PROMPT)
    terminal.ask("France?", "Paris!\r\n")
    terminal.ask(f"/save {home}/talk.md", "Saved to")
    terminal.child.sendeof()
    assert terminal.end() == 0
    assert (home / "talk.md").read_text() == "## User\n\nFrance?\n\n## Assistant\n\nParis!\n"


@pytest.mark.parametrize("slow", ["tokenize", "prefill", "piece"])
def test_ctrl_c_while_a_prompt_is_read_returns_to_the_input_line(tmp_path: Path, home: Path, slow: str) -> None:
    model = write_chain(tmp_path / "paris", say("Par", "is", "!"), context=1_000_000)
    # The text is too long to type, so it is the system prompt.
    terminal = Terminal(model, home, "--system", "x" * 100_000, slow=slow)
    for _ in range(2):
        terminal.type("hi")
        terminal.child.expect_exact("Reading the prompt")
        terminal.child.sendintr()
        terminal.child.expect_exact(f"\r\x1b[K{LEFT}\r\n")
        terminal.child.expect(PROMPT)
    terminal.ask("/stats", "0 turns")
    terminal.type("quit")
    assert terminal.end() == 0


def test_text_typed_while_the_model_works_appears_on_the_next_input_line(tmp_path: Path, home: Path) -> None:
    terminal = Terminal(write_chain(tmp_path / "babble", BABBLE, context=2_000), home, typed="first line")
    terminal.child.expect_exact("/bye to leave.\r\n")
    assert "first" not in terminal.child.before
    terminal.child.expect_exact("first line")
    terminal.child.expect("[a-z]{100}")
    terminal.type("2nd")
    # The answer contains nothing else.
    terminal.child.expect(r"^[a-z]+\r\n\[The answer was cut")
    terminal.child.expect_exact("2nd")
    terminal.child.expect(PROMPT)
    terminal.type("quit")
    assert terminal.end() == 0


def test_sigterm_restores_the_terminal(babble: Path, home: Path) -> None:
    for typed in (None, "talk"):
        terminal = Terminal(babble, home)
        if typed:
            terminal.type(typed)
            terminal.child.expect("[a-z]{100}")
        terminal.child.kill(signal.SIGTERM)
        terminal.child.expect(pexpect.EOF)
        assert terminal.child.getecho()
        terminal.child.close()
        assert terminal.child.signalstatus == signal.SIGTERM


def test_without_streaming_the_answer_and_its_statistics_are_printed(paris: Path, home: Path) -> None:
    terminal = Terminal(paris, home, "--no-stream", "--verbose")
    for _ in range(2):
        terminal.type("France?")
        terminal.child.expect("Paris!\r\nprompt: [0-9]+ tokens, answer: 4 tokens in .* end: stop\r\n")
        terminal.child.expect(PROMPT)
    terminal.type("quit")
    assert terminal.end() == 0


def test_ctrl_d_ends_the_chat(paris: Path, home: Path) -> None:
    terminal = Terminal(paris, home)
    terminal.child.sendeof()
    assert terminal.end() == 0


def test_ctrl_z_suspends_the_chat(paris: Path, home: Path) -> None:
    # The shell needs job control: without a shell that can resume it, the program is not suspended.
    shell = pexpect.spawn("bash", ["--norc", "--noprofile", "-i"], env=variables(home), encoding="utf-8", timeout=60)
    shell.sendline(f"{sys.executable} -m mlxk2 run {paris}")
    shell.expect_exact("/bye to leave")
    shell.expect(PROMPT)
    shell.send("\x1a")
    shell.expect("Stopped|suspended")
    shell.sendline("fg")
    shell.expect(PROMPT)
    shell.sendline("France?")
    shell.expect_exact("Paris!")
    shell.sendline("quit")
    shell.sendline("exit")
    shell.expect(pexpect.EOF)
    shell.close()


def test_input_history_is_kept_for_the_next_chat(paris: Path, home: Path) -> None:
    first = Terminal(paris, home)
    first.ask("remember me", "Paris!\r\n")
    first.type("quit")
    assert first.end() == 0
    history = home / "state" / "mlxk2" / "history"
    assert history.stat().st_mode & 0o077 == 0
    second = Terminal(paris, home)
    second.child.send("\x1b[A\x1b[A")  # arrow up twice: past `quit`
    second.child.expect("remember me")
    second.child.send("\r")
    second.child.expect_exact("Paris!\r\n")
    second.type("quit")
    assert second.end() == 0


def test_input_history_keeps_a_block_of_lines_whole(paris: Path, home: Path) -> None:
    first = Terminal(paris, home)
    for line in ('"""one', "  two", 'three"""'):
        first.type(line)
        first.child.expect(PROMPT)
    first.child.sendeof()
    assert first.end() == 0
    second = Terminal(paris, home)
    second.child.send("\x1b[A")
    second.child.expect_exact('three"""')
    second.child.send("\r")
    second.child.expect_exact("Paris!\r\n")
    second.child.expect(PROMPT)
    second.ask(f"/save {home}/talk.md", "Saved to")
    second.child.sendeof()
    assert second.end() == 0
    assert (home / "talk.md").read_text().startswith("## User\n\none\n  two\nthree\n\n## Assistant")


def test_a_full_context_is_reported_and_keeps_the_conversation(tmp_path: Path, home: Path) -> None:
    model = write_chain(tmp_path / "small", say("Par", "is", "!"), context=100)
    terminal = Terminal(model, home)
    terminal.ask("a", "Paris!\r\n")
    terminal.ask("x" * 90, "/clear starts a new one")
    terminal.ask("/stats", "1 turns")
    terminal.type("quit")
    assert terminal.end() == 0


def test_a_damaged_tokenizer_is_reported_and_the_chat_continues(paris: Path, home: Path) -> None:
    path = paris / "tokenizer.json"
    begin = [{"SpecialToken": {"id": "[NO]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    undefined = {"type": "TemplateProcessing", "single": begin, "pair": [], "special_tokens": {}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": undefined}))
    terminal = Terminal(paris, home, "--no-chat-template")
    for _ in range(2):
        terminal.ask("a", f"Error: The tokenizer of {paris.name} is damaged")
    terminal.type("quit")
    assert terminal.end() == 0


def test_an_interactive_chat_refuses_json(paris: Path, home: Path) -> None:
    child = pexpect.spawn(
        sys.executable,
        ["-m", "mlxk2", "run", str(paris), "--json"],
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
        encoding="utf-8",
        timeout=60,
    )
    child.expect_exact('"CommandError"')
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 2
