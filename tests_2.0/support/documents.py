"""The documents of the project, and the examples in them: blocks of code, and commands within sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
}
# The beginnings of commands and of blocks that can't run in the tests, with the reasons.
NOT_RUN = {
    r"make (demo|test|lint|bench|soak|schema)\b": "creates .venv and installs into it; a test compares the goals",
    r"(\S+ -m )?pip |pipx |uv ": "installs from an index; e2e/test_install_e2e.py installs the package",
    r"(\w+=\S+ )*(\S+ -m )?pytest\b": "tests that run tests; tools/count_tests.py checks that each selects some",
    r"\S*ruff |python (tools|benchmarks)\b|python -c": "run by continuous integration; a test looks for the files",
    r"\./test-multi-python\.sh|tools/in_debian\.sh": "needs other Pythons; test_guide.py runs the script on stand-ins",
    r"(\w+=\S+ )*mlxk2 serve\b(?! --help)": "does not end; the server of the examples is started in this way",
    r"mlxk2 run demo( *#.*)?$": "a chat needs a terminal; e2e/test_chat_pty.py has one",
    r"mlxk2 completion fish \|": "needs fish; e2e/test_completion_e2e.py runs it there",
    r'eval "\$\(mlxk2 completion zsh': "needs zsh; e2e/test_completion_e2e.py runs it there",
    r"hf |curl --http2|kill -9|sudo ": "a program of others, or one that changes the machine",
    r" +argv +HTTP$": "a drawing",
    r"INFO: ": "the log of a server; e2e/test_server_life.py reads one",
}

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HELP = re.compile(r"^<!-- help of .*?<!-- end of help -->$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")
_PROGRAMS = r"mlxk2|mlxk-json|make|pip|uv|python|pytest|curl|hf|sudo|kill|eval|\.|\./\S+|tools/\S+"
_COMMAND = re.compile(rf"(\w+=\S+ )*({_PROGRAMS}) .+")
# A command of which some words stand for others: `mlxk2 show MODEL [--files]`.
_SYNOPSIS = re.compile(r" [A-Z]{2,}(?=[ @/]|$)|\[")


class Example(NamedTuple):
    """An example that a test runs. `output` is what it prints by the document, if the document has that."""

    kind: str
    program: str
    output: str | None = None


def examples(text: str) -> Iterator[Example]:
    """Yield the examples of a document in their order. Those of an unknown kind have the kind `unknown`."""
    text = _HELP.sub("", text)
    blocks = [(kind, block) for kind, block in _BLOCK.findall(text) if not (kind == "text" and is_not_run(block))]
    for number, (kind, block) in enumerate(blocks):
        before, after = (blocks[number - 1] if number else ("", "")), (*blocks, ("", ""))[number + 1]
        if kind == "bash":
            script = "\n".join(line for line in _joined(block).splitlines() if not is_not_run(line))
            yield from [Example("bash", script)] if script.strip() else []
        elif kind == "console":
            yield from _commands(block)
        elif kind == "python" and after[0] == "text":
            yield Example("python", block, after[1])
        elif kind in ("json", "gitignore"):
            yield Example(kind, block)
        elif (kind, before[0]) != ("text", "python"):
            yield Example("unknown", block)
    yield from (Example("bash", command) for command in inline_commands(text) if not _is_only_named(command))


def inline_commands(text: str) -> list[str]:
    """Return the commands in the sentences of a document, each once."""
    sentences = _BLOCK.sub("", text).replace("\\|", "|")
    code = [" ".join(words.split()) for words in _CODE.findall(sentences)]
    return [command for command in dict.fromkeys(code) if _COMMAND.fullmatch(command)]


def is_not_run(command: str) -> bool:
    """Return whether there is a reason not to run a command, or what begins a block."""
    return any(re.match(pattern, command.partition("\n")[0]) for pattern in NOT_RUN)


def _is_only_named(command: str) -> bool:
    """Return whether a command is a synopsis or the name of a command, or can't run here."""
    return bool(_SYNOPSIS.search(command) or re.fullmatch(r"mlxk2 [a-z]+", command)) or is_not_run(command)


def _commands(block: str) -> Iterator[Example]:
    """Yield each command of a console block, which follows `$ `, with its output."""
    for part in re.split(r"^\$ ", _joined(block), flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        if not is_not_run(command):
            yield Example("bash", command, output or None)


def _joined(block: str) -> str:
    """Return a block without the ends of lines that a backslash continues."""
    return block.replace("\\\n", "")
