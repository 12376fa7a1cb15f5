"""The shell examples in the documents run unchanged and print what the documents show.

A `bash` block runs as a script; in a `console` block, a command follows `$ ` and its output comes next. They run with a
local hub and with a cache that holds two copies of the demo model, one of them truncated.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import Program
from support.hub import HubServer
from support.hub.fixtures import Client
from support.layouts import CacheDir
from support.tiny_models import say, write_chain

import mlxk2 as package

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent
DEMO = Path(package.__file__).parent / "demo"
# All documents except docs/server.md, whose examples need a running server.
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    if path.name != "server.md"
}
LIMIT_SECONDS = 240
# Commands that are not run here, with the reason.
ELSEWHERE = {
    r"make ": "makes a virtual environment and installs into it: continuous integration does",
    r"(\S+ -m )?pip |pipx |uv |\S+ -m venv ": "installs from an index; e2e/test_install_e2e.py installs the package",
    r"(\w+=\S+ )*pytest": "tests that run tests: tools/count_tests.py sees that each command selects some",
    r"ruff |mypy|python tools/": "continuous integration does",
    r"\./test-multi-python\.sh|tools/in_debian\.sh": "needs other Pythons: test_guide.py runs it on stand-ins",
    r"mlxk2 run demo *(#.*)?$": "a chat needs a terminal: e2e/test_chat_pty.py",
    r"mlxk2 serve|curl ": "needs a running server",
}

_BLOCK = re.compile(r"^```(bash|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`mlxk2 (\w+)([^`]*)`")
_AGE = re.compile(r"just now|\d+[smhdwy] ago")


class Example(NamedTuple):
    """A script and its output, if the document shows it."""

    script: str
    output: str | None


def examples(text: str) -> Iterator[Example]:
    """Yield the examples of a document that are run here."""
    for kind, block in _BLOCK.findall(text):
        if kind == "bash":
            lines = block.replace("\\\n", "").splitlines()
            yield Example("\n".join(line for line in lines if not is_elsewhere(line)), None)
        else:
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                if not is_elsewhere(command):
                    yield Example(command, output or None)


def is_elsewhere(command: str) -> bool:
    """Return whether a command is among those that are not run here."""
    return any(re.match(pattern, command) for pattern in ELSEWHERE)


def timeless(output: str) -> str:
    """Return an output without parts that differ from run to run and without trailing spaces."""
    return re.sub(r" +$", "", _AGE.sub("now", re.sub(r" +", " ", output)), flags=re.MULTILINE)


@pytest.fixture
def world(hub_server: HubServer, hub_client: Client, tmp_path: Path) -> Client:
    """Return a client with models on the hub and in the cache and with the program on the path."""
    cache_dir = CacheDir(hub_client.cache_dir)
    demo = {path.name: path.read_bytes() for path in DEMO.iterdir() if path.is_file()}
    short = demo | {"model.safetensors": demo["model.safetensors"][:1_000_000]}
    cache_dir.add("me/tiny-chat", demo, "a" * 40)
    cache_dir.add("me/half-done", short, "b" * 40)
    folder = write_chain(tmp_path / "model", say("H", "i"))
    for name in ("mlx-community/Qwen3-0.6B-4bit", "mlx-community/Qwen2.5-0.5B-Instruct-4bit"):
        hub_server.add(name, {path.name: path.read_bytes() for path in folder.iterdir()})
    hub_server.add("meta-llama/Llama-2-7b-hf", {"config.json": b"{}"}, gated=True)
    hub_client.environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "COLUMNS": "96",
        "HF_TOKEN": hub_server.token("user"),
        "MLXK2_LIVE_REPO": "user/my-model",
        "MLXK2_USER_HF_HOME": str(hub_client.home),
    }
    return hub_client


@pytest.mark.parametrize("name", [name for name, text in DOCUMENTS.items() if list(examples(text))])
def test_the_examples_print_what_the_documents_show(name: str, world: Client, tmp_path: Path) -> None:
    without_jq = shutil.which("jq") is None
    for script, output in examples(DOCUMENTS[name]):
        if "jq " in script and without_jq:
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-xc", script],
            cwd=tmp_path,
            env=world.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        if output is not None:
            assert timeless(done.stdout) == timeless(output)
    if without_jq and "jq " in DOCUMENTS[name]:
        pytest.skip("jq is not installed; the examples that don't need it were right")


def test_the_readme_has_examples_with_and_without_output() -> None:
    found = list(examples(DOCUMENTS["README.md"]))
    assert any("mlxk2 run demo" in example.script for example in found)
    assert any(example.output for example in found)


def test_examples_are_extracted_from_console_and_bash_blocks() -> None:
    console = "```console\n$ mlxk2 list\nName   Modified\nx      2d ago\n$ echo b\n```\n"
    script = "```bash\nmake demo\nfalse \\\n  # x\n```\n"
    assert list(examples(console + script)) == [
        Example("mlxk2 list", "Name   Modified\nx      2d ago\n"),
        Example("echo b", None),
        Example("false   # x", None),
    ]
    assert timeless("Name  Modified \nx  just now\n") == timeless("Name   Modified\nx    2d ago\n")
    assert timeless("4.1MB 2d ago") != timeless("4.4MB 2d ago")


def test_the_picture_shows_the_real_output(world: Client) -> None:
    picture = (ROOT / "docs" / "session.svg").read_text(encoding="utf-8")
    shown = "".join(html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", "", picture, flags=re.DOTALL)).split())
    question = ["run", "demo", "What is the capital of France?", "--temperature", "0"]
    for words in (question, ["list", "--health"], ["health"]):
        assert "".join(world.run(*words).out.split()) in shown


@pytest.mark.parametrize("name", [name for name, text in DOCUMENTS.items() if _INLINE.search(text)])
def test_options_named_in_documents_exist(name: str, mlxk2: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXK2_ENABLE_ALPHA_FEATURES", "1")
    for command, words in _INLINE.findall(DOCUMENTS[name]):
        wanted = set(re.findall(r"--[a-z][a-z-]+", words))
        assert wanted <= set(re.findall(r"--[a-z][a-z-]+", mlxk2(command, "--help").out)) | {"--json", "--help"}
