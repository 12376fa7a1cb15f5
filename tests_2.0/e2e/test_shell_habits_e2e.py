"""Habits of shell users: help and lists that fit the width, colours by choice, pipes that may close."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pexpect
import pytest
from support.layouts import CacheDir, chat_model, without
from support.tiny_models import say, write_chain
from wcwidth import wcswidth

from mlxk2.cli.parser import ALPHA_VARIABLE, COMMANDS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

BIN = Path(sys.executable).parent


# -------------------------------------------------------------------------------------------------------- terminals


Terminal = Callable[..., list[str]]


@pytest.fixture
def terminal(environment: dict[str, str]) -> Terminal:
    """Return a function that runs the program on a terminal with a given width and returns the lines that it shows."""

    def start(*words: str, columns: int = 80, **changes: str) -> list[str]:
        program, size = str(BIN / "mlxk2"), (24, columns)
        child = pexpect.spawn(program, [*words], env=environment | changes, dimensions=size, encoding="utf-8")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
        return str(child.before).splitlines()

    return start


@pytest.mark.parametrize("columns", [40, 200])
@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_the_width_of_the_terminal(terminal: Terminal, columns: int, command: str | None) -> None:
    words = [command] if command else []
    # From Python 3.14 on, argparse colours its help.
    shown = terminal(*words, "--help", columns=columns, **{ALPHA_VARIABLE: "1"})
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown]
    assert max(map(len, lines)) <= columns
    assert max(map(len, lines)) > columns / 4


@pytest.fixture
def model(isolated_cache: Path) -> None:
    """Fill the cache with a sound and a damaged model."""
    CacheDir(isolated_cache).add("org/Beta", chat_model())
    CacheDir(isolated_cache).add("org/broken", without(chat_model(), "config.json"))


COLOUR = re.compile(r"\x1b\[(?:[0-9]+;)*[349][0-8][;m]")
LISTINGS = ["list --health", "show Beta", "health", "health --deep"]


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("line", LISTINGS)
def test_no_color_and_force_color_decide_on_colours(terminal: Terminal, line: str) -> None:
    def shown(**changes: str) -> str:
        return "\n".join(terminal(*line.split(), **changes))

    assert COLOUR.search(shown())
    assert COLOUR.search(shown(NO_COLOR=""))
    assert COLOUR.search(shown(FORCE_COLOR="1"))
    assert not COLOUR.search(shown(NO_COLOR="1"))
    assert not COLOUR.search(shown(NO_COLOR="1", FORCE_COLOR="1"))
    assert "\x1b" not in shown(TERM="dumb")
    assert "\x1b" not in shown(TERM="dumb", FORCE_COLOR="1")


@pytest.mark.parametrize("changes", [{}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}])
def test_answers_are_never_coloured(terminal: Terminal, changes: dict[str, str]) -> None:
    written = "".join(terminal("run", "demo", "Hello!", "--seed", "1", "--max-tokens", "5", "--verbose", **changes))
    assert not COLOUR.search(written)
    # While the model loads, a progress line is shown and erased, but not on a dumb terminal.
    assert "\x1b" not in written or "TERM" not in changes


@pytest.mark.parametrize(("changes", "codes"), [({}, True), ({"NO_COLOR": "1"}, True), ({"TERM": "dumb"}, False)])
def test_a_chat_edits_lines_on_a_capable_terminal(
    environment: dict[str, str], changes: dict[str, str], codes: bool
) -> None:
    variables = environment | {"PROMPT_TOOLKIT_NO_CPR": "1"} | changes
    child = pexpect.spawn(str(BIN / "mlxk2"), ["run", "demo"], env=variables, encoding="utf-8", timeout=60)
    child.expect("to leave.\r\n")
    child.sendline("/stats")
    child.expect("The conversation has no completion yet")
    child.sendline("exit")
    seen = str(child.before) + str(child.after) + str(child.read())
    child.close()
    assert child.exitstatus == 0
    assert ("\x1b[" in seen) == codes
    assert not COLOUR.search(seen)


def test_the_start_line_of_a_server_has_no_control_characters(environment: dict[str, str], tmp_path: Path) -> None:
    write_chain(tmp_path / "x\x1b[31m\u202ey", say("Par", "is"))
    words = ["serve", "--model", "./x\x1b[31m\u202ey", "--port", "0"]
    child = pexpect.spawn(str(BIN / "mlxk2"), words, cwd=tmp_path, env=environment, encoding="utf-8", timeout=60)
    child.expect("Serving with (.*) on http")
    assert str(child.match[1]) == "x\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}y"
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()


LONG = [
    "mlx-community/Qwen3-0.6B-4bit",
    "mlx-community/Qwen3-0.6B-8bit",
    "organisation/a-model-of-forty-columns-4bit",
    "组织/很长的模型名称-八位-8bit",
    "organisation/" + "long-" * 16 + "x",
]


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("line", ["list --verbose", "list --all --health --verbose", "health"])
def test_a_narrow_terminal_keeps_names_whole(isolated_cache: Path, terminal: Terminal, line: str, columns: int) -> None:
    for name in LONG:
        CacheDir(isolated_cache).add(name, without(chat_model(), "config.json"))
    lines = terminal(*line.split(), columns=columns, TERM="dumb")
    assert max(map(wcswidth, lines)) <= columns
    for name in LONG:
        # A longer name may be wrapped, but its first line must still identify the model.
        start = name if wcswidth(name) <= 32 else name[:32]
        assert any(row.startswith(start) for row in lines), name
    words = {word for row in lines for word in row.split()}
    assert words >= {"unhealthy"} if "health" in line else words >= {"0123456", "Framework"}


# ------------------------------------------------------------------------------------------------------------ pipes


# Command lines that print to stdout and succeed, then those that fail, with their exit codes.
ANSWERS = [
    "list",
    "list --json",
    "show Beta --files --config",
    "health --deep",
    "rm org/Beta --dry-run",
    "clone org/Beta copy",
    "push . org/x --check-only",
    "run demo Hi --max-tokens 9",
    "run demo Hi --json",
    "completion zsh",
    "--help",
    "run --help",
    "--version",
]
FAULTS = {"show nonesuch": 1, "run nonesuch Hi": 1, "list --nonesuch": 2, "nonesuch": 2}

Piped = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def piped(environment: dict[str, str], tmp_path: Path) -> Piped:
    """Return a function that runs the program in a new folder with the given streams."""

    def start(
        line: str,
        unbuffered: str = "",
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> subprocess.CompletedProcess[str]:
        variables = environment | {ALPHA_VARIABLE: "1", "PYTHONUNBUFFERED": unbuffered}
        with TemporaryDirectory(dir=tmp_path) as folder:
            return subprocess.run(
                [BIN / "mlxk2", *line.split()],
                cwd=folder,
                env=variables,
                timeout=60,
                text=True,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
            )

    return start


@pytest.fixture
def gone() -> Iterator[int]:
    """Yield a pipe whose reader has closed it."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.fixture
def full() -> Iterator[int]:
    """Yield a file on a full disk."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no full device")
    device = os.open("/dev/full", os.O_WRONLY)
    yield device
    os.close(device)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("line", [*ANSWERS, "serve --port 0"])
def test_a_closed_pipe_is_no_error(piped: Piped, gone: int, line: str, unbuffered: str) -> None:
    done = piped(line, unbuffered, stdout=gone)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("line", [*ANSWERS, "serve --port 0"])
def test_output_to_a_full_disk_is_a_one_line_error(piped: Piped, full: int, line: str, unbuffered: str) -> None:
    done = piped(line, unbuffered, stdout=full)
    assert (done.returncode, done.stderr) == (1, "Error: The operating system refused: No space left on device.\n")


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("line", "code"), FAULTS.items())
def test_errors_on_a_closed_stderr_keep_their_exit_code(
    piped: Piped, gone: int, full: int, line: str, code: int, unbuffered: str
) -> None:
    for stream in (gone, full):
        assert piped(line, unbuffered, stderr=stream).returncode == code
        assert piped(line, unbuffered, stderr=stream, stdout=stream).returncode == code


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(("line", "code"), [*FAULTS.items(), *((line, 0) for line in ANSWERS)])
def test_closed_streams_keep_the_exit_code(environment: dict[str, str], tmp_path: Path, line: str, code: int) -> None:
    for number, closed in enumerate((">&-", "2>&-", "<&-", ">&- 2>&- <&-")):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = ["bash", "-c", f"{BIN / 'mlxk2'} {line} {closed}"]
        variables = environment | {ALPHA_VARIABLE: "1"}
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, closed
        assert bool(done.stderr) == (code > 0 and "2>&-" not in closed)
        assert bool(done.stdout) == (code == 0 and ">&-" not in closed.replace("2>&-", ""))
