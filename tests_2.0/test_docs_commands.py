"""The examples of the documents run as they are, and print what the documents say.

- A `bash` block is run as a script.
- In a `console` block, the lines after a `$ ` line are what this command prints.
- A `python` block prints the `text` block that follows it.
- A `json` block is a document of the JSON API.
- A `gitignore` block is a `.hfignore`.
- Commands in sentences are run, unless some of their words stand for others.

All examples of a page share a local hub, a server, and a cache with the demo model twice, one of them cut short.
"""

from __future__ import annotations

import contextlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from jsonschema import Draft202012Validator
from support.documents import DOCUMENTS, NOT_RUN, ROOT, Example, examples, inline_commands
from support.hub import HubServer
from support.hub.fixtures import Client
from support.layouts import CacheDir
from support.serving import Server
from support.tiny_models import say, write_chain

import mlxk2 as package

pytestmark = pytest.mark.e2e

DEMO = Path(package.__file__).parent / "demo"
SCHEMA = json.loads((ROOT / "docs" / "json-api-schema.json").read_text(encoding="utf-8"))
PROGRAMS = Path(sys.executable).parent
ADDRESS = "127.0.0.1:8000"
LIMIT_SECONDS = 240

_AGE = re.compile(r"just now|\d+[smhdwy] ago")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server("--model", "demo", home=tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture
def world(hub_server: HubServer, hub_client: Client, tmp_path: Path) -> Client:
    """Return a user with models on the hub and in the cache, in a folder with the project's environment."""
    cache_dir = CacheDir(hub_client.cache_dir)
    demo = {path.name: path.read_bytes() for path in DEMO.iterdir() if path.is_file()}
    short = demo | {"model.safetensors": demo["model.safetensors"][:1_000_000]}
    cache_dir.add("me/tiny-chat", demo, "a" * 40)
    cache_dir.add("me/half-done", short, "b" * 40)
    folder = write_chain(tmp_path / "model", say("H", "i"))
    for name in ("mlx-community/Qwen3-0.6B-4bit", "mlx-community/Qwen2.5-0.5B-Instruct-4bit"):
        hub_server.add(name, {path.name: path.read_bytes() for path in folder.iterdir()})
    hub_server.add("meta-llama/Llama-2-7b-hf", {"config.json": b"{}"}, gated=True)
    (tmp_path / ".venv").symlink_to(PROGRAMS.parent)
    hub_client.environment |= {
        "PATH": os.pathsep.join([str(PROGRAMS), os.environ["PATH"]]),
        "COLUMNS": "96",
        "HF_TOKEN": hub_server.token("user"),
        "MLXK2_LIVE_REPO": "user/my-model",
        "MLXK2_USER_HF_HOME": str(hub_client.home),
    }
    return hub_client


@pytest.mark.parametrize("name", [name for name, text in DOCUMENTS.items() if list(examples(text))])
def test_examples_print_what_the_documents_show(
    name: str, world: Client, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    without_jq = shutil.which("jq") is None
    for example in examples(DOCUMENTS[name]):
        if without_jq and "jq " in example.program:
            continue
        if ADDRESS in example.program:
            port = request.getfixturevalue("server").port
            example = example._replace(program=example.program.replace(ADDRESS, f"127.0.0.1:{port}"))
        RUN[example.kind](example, world, tmp_path)
    if without_jq and "jq " in DOCUMENTS[name]:
        pytest.skip("jq is not installed; the examples that don't need it were right")


def run_bash(example: Example, world: Client, folder: Path) -> None:
    """Run a script in the folder, and compare what it prints."""
    command = ["bash", "-euo", "pipefail", "-xc", example.program]
    done = subprocess.run(
        command,
        cwd=folder,
        env=world.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    if example.output is not None:
        assert comparable(done.stdout) == comparable(example.output)


def run_python(example: Example, world: Client, folder: Path) -> None:  # noqa: ARG001 - as the others
    """Run a program in this process, and compare what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example.program, "example", "exec"), {})
    assert printed.getvalue() == example.output


def check_json(example: Example, world: Client, folder: Path) -> None:  # noqa: ARG001 - as the others
    """Validate a document of the JSON API."""
    Draft202012Validator(SCHEMA).validate(json.loads(example.program))


def check_hfignore(example: Example, world: Client, folder: Path) -> None:
    """Push a folder with this `.hfignore`; fail unless it includes a file for each of its lines."""
    workspace = folder / "workspace"
    names = {line.lstrip("!") + ("file" if line.endswith("/") else "") for line in example.program.splitlines()}
    for name in (*names, "config.json"):
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text("x")
    command = ["push", "--dry-run", "--create", str(workspace), "user/my-model", "--json"]
    assert not names & set(world.run(*command).json["data"]["added_files"])
    (workspace / ".hfignore").write_text(example.program)
    assert names <= set(world.run(*command).json["data"]["added_files"])


def fail(example: Example, world: Client, folder: Path) -> None:  # noqa: ARG001 - as the others
    """Fail for a block that no test runs."""
    pytest.fail(f"No test runs this block; give it a kind that {__file__} knows, or a reason in NOT_RUN:\n{example}")


RUN: dict[str, Callable[[Example, Client, Path], None]] = {
    "bash": run_bash,
    "python": run_python,
    "json": check_json,
    "gitignore": check_hfignore,
    "unknown": fail,
}


def comparable(output: str) -> Any:
    """Return an output without what differs from run to run, and with the events of a stream joined."""
    text = re.sub(r'"(id)": ?"(chatcmpl|cmpl)-\w+"', r'"\1":"\2"', output)
    text = re.sub(r'"created": ?\d+', '"created":0', text)
    text = re.sub(r'"version": ?"[^"]+"', '"version":""', text)
    text = re.sub(r'"cached_tokens": ?\d+', '"cached_tokens":0', text)
    text = re.sub(r'("\w+_(?:n|ms|per_second)"): ?[^,}]+', r"\1:0", text)
    if text.startswith("data: "):
        return _joined_events(text)
    try:
        return json.loads(text, parse_float=lambda number: round(float(number), 2))
    except ValueError:
        return re.sub(r" +$", "", _AGE.sub("now", re.sub(r" +", " ", text)), flags=re.MULTILINE)


def _joined_events(text: str) -> list[Any]:
    """Return the events of a stream; text from several events is joined in the first of them."""
    joined: list[Any] = []
    for line in filter(None, text.splitlines()):
        data = line.removeprefix("data: ")
        event: Any = data if data == "[DONE]" else json.loads(data)
        delta = event["choices"][0]["delta"] if event != "[DONE]" and event["choices"] else {}
        before = joined[-1]["choices"][0]["delta"] if joined and joined[-1]["choices"] else {}
        if list(delta) == list(before) == ["content"]:
            before["content"] += delta["content"]
        else:
            joined.append(event)
    return joined


def test_the_documents_have_examples_of_every_kind() -> None:
    found = [example for text in DOCUMENTS.values() for example in examples(text)]
    assert {example.kind for example in found} == {"bash", "python", "json", "gitignore"}
    assert any(example.output and example.kind == "bash" for example in examples(DOCUMENTS["README.md"]))


def test_examples_are_extracted_and_compared() -> None:
    console = "```console\n$ mlxk2 list\nName   Modified\nx      2d ago\n$ echo \\\n  b\n```\n"
    script = "```bash\nmake demo\nfalse \\\n  # x\n```\n```bash\npip install .\n```\n"
    other = "```python\nprint(1)\n```\n```yaml\na: 1\n```\nRun `mlxk2 list\nqwen`, `mlxk2 list`, `mlxk2 show MODEL`.\n"
    assert list(examples(console + script + other)) == [
        Example("bash", "mlxk2 list", "Name   Modified\nx      2d ago\n"),
        Example("bash", "echo   b"),
        Example("bash", "false   # x"),
        Example("unknown", "print(1)\n"),
        Example("unknown", "a: 1\n"),
        Example("bash", "mlxk2 list qwen"),
    ]
    assert comparable("Name  Modified \nx  just now\n") == comparable("Name   Modified\nx    2d ago\n")
    assert comparable("4.1MB 2d ago") != comparable("4.4MB 2d ago")
    assert comparable('{"id": "cmpl-1", "a": 1}') == comparable('{"id": "cmpl-2", "a": 1.001}')


def test_every_exception_from_running_is_needed() -> None:
    lines = [line for text in DOCUMENTS.values() for line in (*text.splitlines(), *inline_commands(text))]
    assert [pattern for pattern in NOT_RUN if not any(re.match(pattern, line) for line in lines)] == []


def test_make_targets_and_programs_named_in_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for text in DOCUMENTS.values():
        for goal in re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE):
            assert re.search(rf"^{goal}:", makefile, re.MULTILINE), goal
        for path in re.findall(r"\b(?:tools|benchmarks|tests_2\.0)/[\w./-]+\.(?:py|sh|txt)\b", text):
            assert (ROOT / path).exists(), path


def test_the_picture_shows_the_real_output(world: Client) -> None:
    picture = (ROOT / "docs" / "session.svg").read_text(encoding="utf-8")
    shown = "".join(html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", "", picture, flags=re.DOTALL)).split())
    question = ["run", "demo", "What is the capital of France?", "--temperature", "0"]
    for words in (question, ["list", "--health"], ["health"]):
        assert "".join(world.run(*words).out.split()) in shown


def test_options_named_in_documents_exist(mlxk2: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXK2_ENABLE_ALPHA_FEATURES", "1")
    named: dict[str, set[str]] = {}
    for text in DOCUMENTS.values():
        for command, words in re.findall(r"`mlxk2 ([a-z]+)([^`]*)`", text):
            named.setdefault(command, set()).update(re.findall(r"--[a-z][a-z-]+", words))
    for command, options in named.items():
        known = set(re.findall(r"--[a-z][a-z-]+", mlxk2(command, "--help").out))
        assert options <= known | {"--json", "--help"}, command
