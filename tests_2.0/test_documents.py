"""The documents have the current help, figures, versions and limits, and links that work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from support.documents import DOCUMENTS, ROOT

import mlxk2
from mlxk2 import names
from mlxk2.cache import index
from mlxk2.checkpoint import card, files, gguf, safetensors, snapshot
from mlxk2.cli import outlet, parser
from mlxk2.commands import serve
from mlxk2.hub.limits import Limits
from mlxk2.runner import memory, request
from mlxk2.runner.mlx import prefill, sampler
from mlxk2.runner.output import reasoning
from mlxk2.runner.prompt import confined
from mlxk2.server import app, generation, lifecycle, preparing
from mlxk2.server.http import bodies, connection, refusals
from mlxk2.server.openai import chat, fields, sse

PAGES = ROOT / "docs" / "commands"
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
DEFAULTS = parser.parse(["serve"], {})
STALL_SECONDS = lifecycle.Settings.__dataclass_fields__["stall_seconds"].default
APP = {name: field.default for name, field in app.Service.__dataclass_fields__.items()}
HUB = Limits()
# What the documents say about the limits and defaults of the code: every `{}` stands for one of the numbers.
SENTENCES: dict[str, list[tuple[str, tuple[Any, ...]]]] = {
    "docs/server.md": [
        ("at the latest after {:g} seconds", (APP["stream_seconds"],)),
        ("an event without text is sent every {:g} seconds", (APP["heartbeat"],)),
        ("A probability of zero is {:g}.", (sse.MIN_LOGPROB,)),
        ("In the first {} characters", (reasoning.MAX_BEGINNING,)),
        ("larger than {} MB, or has more than {:,} values |", (refusals.MAX_BODY_BYTES // MIB, bodies.MAX_VALUES)),
        ("whose head is larger than {} KB or", (connection.MAX_HEAD_BYTES // KIB,)),
        ("or has more than {} header fields", (connection.MAX_FIELDS,)),
        ("| a request's body | {} MB, compressed and", (refusals.MAX_BODY_BYTES // MIB,)),
        ("and uncompressed, and {:,} values |", (bodies.MAX_VALUES,)),
        ("wait | {} MB of what has arrived", (bodies.MAX_HELD_BYTES // MIB,)),
        ("without the first {} KB of each;", (bodies.FREE_BYTES // KIB,)),
        ("a request's head | {} KB, {} header fields", (connection.MAX_HEAD_BYTES // KIB, connection.MAX_FIELDS)),
        ("fields, and {:g} s from its first byte", (STALL_SECONDS,)),
        ("| {} (`--max-concurrent`, at most {:,})", (DEFAULTS.max_concurrent, serve._MAX_CONCURRENT)),
        ("| {} (`--max-queue`, at most {:,})", (DEFAULTS.max_queue, serve._MAX_QUEUE)),
        ("half of the model's context, or {:,} if its files name none", (request.DEFAULT_MAX_TOKENS,)),
        ("| messages of a conversation | {:,}, and", (chat.MAX_MESSAGES,)),
        ("| stop strings | {}, of {:,} characters each |", (fields.MAX_STOPS, get_args(fields.Stop)[1].max_length)),
        ("| tokens in `logit_bias` | {:,} |", (fields.MAX_BIASES,)),
        ("without `stream` | {:,}: the number of tokens", (fields.MAX_LOGPROBS_HELD,)),
        ("| {:g} s and {:g} s of processor time", (confined.MAX_TEMPLATE_SECONDS, confined.MAX_CPU_SECONDS["chat"])),
        ("processor time, {} GB of memory without the libraries", (confined.MAX_MEMORY_BYTES // GIB,)),
        ("wait for the client | {:,} for each completion", (generation.MAX_WAITING_EVENTS,)),
        ("not read | {} KB in {:g} s;", (connection.MIN_READ_BYTES // KIB, STALL_SECONDS)),
        ("not read | {} KB in {:g} s;", (connection.MIN_SENT_BYTES // KIB, STALL_SECONDS)),
        ("ahead on one connection | {} KB;", (connection.MAX_BYTES_AHEAD // KIB,)),
        ("| an idle connection | {} s |", (lifecycle._KEEP_ALIVE_SECONDS,)),
        ("waits for its reader | {} MB;", (outlet.MAX_WAITING_BYTES // MIB,)),
        ("at most {} of a client at a time", (preparing.MAX_PER_CLIENT,)),
        ("(default: {}, port {})", (DEFAULTS.host, DEFAULTS.port)),
    ],
    "docs/memory.md": [
        ("more than {:g} % of the working set", (100 * memory._GOOD_SHARE,)),
        ("the prompt cache and {} GB for the completions", (memory._WORK_BYTES // 10**9,)),
    ],
    "docs/push.md": [
        ("more than {} bytes, or a path of more than {} bytes", (names.MAX_PART_BYTES, names.MAX_PATH_BYTES)),
    ],
    "docs/decisions/0004-limits-of-reading.md": [
        ("`hf_quant_config.json` | {} MiB | {:,} values", (files.CONFIG_LIMIT.bytes // MIB, files.CONFIG_LIMIT.values)),
        ("values, {} levels |", (snapshot.MAX_JSON_NESTING,)),
        ("`*.index.json` | {} MiB", (files.INDEX_LIMIT.bytes // MIB,)),
        ("({} MiB of text that is not ASCII)", (files.INDEX_LIMIT.bytes // 4 // MIB,)),
        ("| {:,} values, {:,} files |", (files.INDEX_LIMIT.values, snapshot.MAX_SHARDS)),
        ("| safetensors header | {} MiB", (safetensors.MAX_HEADER_BYTES // MIB,)),
        ("| {:,} tensors; {:,} values", (safetensors.MAX_TENSORS, files.HEADER_LIMIT.values)),
        ("| GGUF header | {} MiB | {:,} entries |", (gguf.MAX_HEADER_BYTES // MIB, gguf.MAX_ENTRIES)),
        ("| `tokenizer_config.json` | {} MiB |", (snapshot.MAX_TOKENIZER_CONFIG_BYTES // MIB,)),
        ("| model card | {} MiB | {} KiB of", (snapshot.MAX_CARD_BYTES // MIB, card.MAX_YAML // KIB)),
        ("compressed and decompressed | {} MB |", (HUB.response_bytes // 10**6,)),
        ("an error or a redirect | {} KB;", (HUB.error_bytes // 10**3,)),
        ("the time of a response | {} seconds", (HUB.response_seconds,)),
        ("| {} seconds; {} after an upload |", (HUB.silence_seconds, HUB.silence_after_upload_seconds)),
        ("| a slow response | at least {} KB in every {} seconds", (HUB.slow_bytes // 10**3, HUB.slow_seconds)),
        ("| a slow file | at least {} KB in every {} seconds", (HUB.slow_file_bytes // 10**3, HUB.slow_file_seconds)),
        ("all its pages | {:,} pages, {} MB", (HUB.call_requests, HUB.call_bytes // 10**6)),
        ("MB, {:,} files and folders, {} minutes |", (HUB.files, HUB.call_seconds // 60)),
        ("the hub asks for (429, 503) | {} seconds |", (HUB.pause_seconds,)),
    ],
    "docs/decisions/0009-stop-strings-and-reasoning.md": [("the first {} characters", (reasoning.MAX_BEGINNING,))],
    "docs/decisions/0010-seeds-and-samplers.md": [("at the last {} tokens", (sampler._REPETITION_WINDOW_TOKENS,))],
    "docs/decisions/0014-list-remembers.md": [("the first {} KiB of each file", (index.BEGINNING_BYTES // KIB,))],
    "docs/decisions/0015-prompts-are-computed-once.md": [("at least {} tokens;", (prefill._MIN_CACHED_TOKENS,))],
    "docs/decisions/0016-chat-templates-and-tokenizers-in-a-process.md": [
        ("| rendering a template | {:g} s |", (confined.MAX_TEMPLATE_SECONDS,)),
        ("| a prompt | {:g} s | {:g} s |", (confined.MAX_CPU_SECONDS["chat"], confined._MAX_WALL_SECONDS["chat"])),
        (
            "| decoding a line | {:g} s | {:g} s |",
            (confined.MAX_CPU_SECONDS["decode"], confined._MAX_WALL_SECONDS["decode"]),
        ),
        ("| loading | {:g} s | {:g} s |", (confined.MAX_CPU_SECONDS["open"], confined._MAX_WALL_SECONDS["open"])),
        ("limited to {} GB", (confined.MAX_MEMORY_BYTES // GIB,)),
    ],
    "docs/decisions/0017-prompts-are-padded-where-that-is-right.md": [
        ("at most {} tokens of prompts, on the CPU {}:", (prefill._BUDGET_TOKENS, prefill._BUDGET_ON_CPU)),
        ("{:,} at a time while no sequence generates", (prefill._BUDGET_ALONE_ON_GPU,)),
        ("no prompt is longer than {:,}.", (prefill._LONG_PROMPT_TOKENS,)),
    ],
}


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
    assert all(f"(docs/commands/{command}.md)" in DOCUMENTS["README.md"] for command in commands)


def test_the_readme_has_the_figures_of_the_performance_page() -> None:
    assert run("benchmarks/report.py", "--check").returncode == 0


@pytest.mark.parametrize(("words", "code"), [((f"v{mlxk2.__version__}",), 0), (("v0.0.1",), 1), ((), 2)])
def test_a_tag_must_match_the_version(words: tuple[str, ...], code: int) -> None:
    assert run("tools/check_tag.py", *words).returncode == code


@pytest.mark.parametrize("name", SENTENCES)
def test_the_limits_and_defaults_of_a_page_match_the_code(name: str) -> None:
    page = " ".join(DOCUMENTS[name].split())
    expected = [template.format(*numbers) for template, numbers in SENTENCES[name]]
    assert [sentence for sentence in expected if sentence not in page] == []


@pytest.mark.parametrize("name", ["docs/server.md", "docs/decisions/0004-limits-of-reading.md"])
def test_every_row_of_limits_is_compared_with_the_code(name: str) -> None:
    known = [template.format(*numbers) for template, numbers in SENTENCES[name]]
    tables = re.findall(
        r"^\| (?:What|file) \| (?:How much|Limit|bytes .*) \|\n(?:\|.*\n)+", DOCUMENTS[name], re.MULTILINE
    )
    rows = [row for table in tables for row in table.splitlines() if re.search(r"\d", row)]
    assert len(rows) > 10
    assert [row for row in rows if not any(sentence in row for sentence in known)] == []


def test_the_readme_names_the_tested_python_versions() -> None:
    (supported,) = re.findall(r'SUPPORTED="(.*)"', (ROOT / "test-multi-python.sh").read_text(encoding="utf-8"))
    first, *_, last = supported.split()
    assert f"Python {first} to {last}." in DOCUMENTS["README.md"]
    assert f'requires-python = ">={first}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    for name, text in DOCUMENTS.items():
        for target in re.findall(r"\]\(([^)\s:]+)\)", text):
            path, _, anchor = target.partition("#")
            file = (ROOT / name).parent / path if path else ROOT / name
            assert file.exists(), f"{name}: {target}"
            assert not anchor or anchor in anchors(file), f"{name}: {target}"


def anchors(page: Path) -> list[str]:
    """Return the names that links give to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
