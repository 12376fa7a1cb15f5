"""`mlxk2 run` as users and scripts start it: a process, real MLX, real models."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.starting import python_path
from support.tiny_models import BABBLE, NEWLINE, say, write_chain

pytestmark = pytest.mark.e2e

# In the child, any use of the network is an error, and a file appears once the handler for Ctrl-C is installed.
SITE = """
import os, signal, sys
def audit(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        sys.stderr.write(f"NETWORK {event} {arguments}\\n")
        raise RuntimeError("network")
sys.addaudithook(audit)
install = signal.signal
def note(number, handler):
    if callable(handler) and hasattr(handler, "__self__"):
        open(os.environ["HOME"] + "/waits-for-ctrl-c", "w").close()
    return install(number, handler)
signal.signal = note
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a user with an empty cache, where any use of the network is an error."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    home = {
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONPATH": python_path(site),
    }
    return {"PATH": os.environ["PATH"], "PYTHONWARNINGS": "error::ResourceWarning", **home}


def run(environment: dict[str, str], *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [sys.executable, "-m", "mlxk2", "run", *words],
        env=environment,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def data(environment: dict[str, str], *words: str, stdin: str | None = None) -> dict[str, Any]:
    """Return the data of a successful run with --json."""
    done = run(environment, *words, "--json", stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    envelope = json.loads(done.stdout)
    assert (envelope["status"], envelope["command"], envelope["error"]) == ("success", "run", None)
    return dict(envelope["data"])


def test_the_demo_answers_a_question(environment: dict[str, str]) -> None:
    done = run(environment, "demo", "What is the capital of France?")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.strip()) > 5
    assert "<|" not in done.stdout


def test_text_is_the_same_streamed_collected_and_in_json(environment: dict[str, str]) -> None:
    asked = ("demo", "Tell me a story.", "--seed", "7", "--max-tokens", "40", "--hide-reasoning")
    streamed = run(environment, *asked).stdout
    assert streamed == run(environment, *asked, "--no-stream").stdout
    answer = data(environment, *asked)
    assert streamed == answer["response"] + "\n" * (not answer["response"].endswith("\n"))
    assert (answer["model"], answer["prompt"]) == ("demo", "Tell me a story.")
    assert answer["tokens_generated"] <= 40
    assert answer["prompt_tokens"] > 3
    assert answer["generation_time_s"] > 0


def test_the_same_seed_gives_the_same_text(environment: dict[str, str], tmp_path: Path) -> None:
    model = str(write_chain(tmp_path / "babble", BABBLE))
    asked = (model, "hi", "--max-tokens", "30", "--seed")
    said = [data(environment, *asked, seed)["response"] for seed in ("1", "1", "2")]
    assert said[0] == said[1] != said[2]
    assert len(said[0]) == 30


def test_reasoning_is_printed_before_the_answer(environment: dict[str, str], tmp_path: Path) -> None:
    chain = say("<think>", NEWLINE + "x", "Hm", "</think>", NEWLINE * 2, "Paris", ".")
    model = str(write_chain(tmp_path / "thinker", chain))
    for words in ((), ("--no-stream",)):
        assert run(environment, model, "hi", *words).stdout == "[Reasoning]\nxHm\n\n[Answer]\nParis.\n"
    assert run(environment, model, "hi", "--hide-reasoning").stdout == "Paris.\n"
    answer = data(environment, model, "hi")
    assert (answer["reasoning"], answer["response"], answer["finish_reason"]) == ("xHm", "Paris.", "stop")
    assert answer["tokens_generated"] == 8


def test_json_has_the_finish_reason_and_statistics(environment: dict[str, str], tmp_path: Path) -> None:
    model = str(write_chain(tmp_path / "babble", BABBLE, context=64))
    answer = data(environment, model, "hi", "--max-tokens", "5")
    assert (answer["finish_reason"], answer["tokens_generated"], len(answer["response"])) == ("length", 5, 5)
    whole = data(environment, model, "hi")
    assert whole["prompt_tokens"] + whole["tokens_generated"] == 64
    assert answer["generation_time_s"] > answer["time_to_first_token_s"] > 0
    assert answer["tokens_per_second"] > 0
    assert answer["prompt_tokens_per_second"] > 0
    printed = run(environment, model, "hi", "--max-tokens", "5", "--verbose").stderr
    assert "answer: 5 tokens" in printed
    assert re.search(r"the first after \d+\.\d\d s, prompt \d+\.\d tokens/s, answer \d+\.\d tokens/s", printed)
    alone = data(environment, model, "hi", "--max-tokens", "1")
    assert (alone["tokens_generated"], alone["tokens_per_second"]) == (1, 0)


@pytest.mark.parametrize("words", [(), ("-",)])
def test_the_prompt_can_come_from_stdin(environment: dict[str, str], tmp_path: Path, words: tuple[str, ...]) -> None:
    model = str(write_chain(tmp_path / "m", say("Paris")))
    assert data(environment, model, *words, stdin="Where?\nThere?\n")["prompt"] == "Where?\nThere?"


def test_no_chat_template_continues_the_prompt(environment: dict[str, str], tmp_path: Path) -> None:
    model = str(write_chain(tmp_path / "m", say("Paris", after="?")))
    answer = data(environment, model, "Where?", "--no-chat-template")
    assert (answer["response"], answer["prompt_tokens"]) == ("Paris", 6)
    assert data(environment, model, "Where?")["response"] == ""


def test_a_system_prompt_is_part_of_the_prompt(environment: dict[str, str], tmp_path: Path) -> None:
    model = str(write_chain(tmp_path / "m", say("Paris")))
    plain, system = (data(environment, model, "hi", *words) for words in ((), ("--system", "Be brief.")))
    assert system["prompt_tokens"] > plain["prompt_tokens"] + len("Be brief.")


@pytest.mark.parametrize(
    ("words", "stdin", "kind", "said"),
    [
        (("nonesuch", "hi"), None, "model_not_found", "mlxk2 pull mlx-community/nonesuch"),
        (("demo",), "", "ValidationError", "prompt is empty"),
        (("demo", " "), None, "ValidationError", "prompt is empty"),
        (("demo", "x " * 5000), None, "context_length_exceeded", "context"),
        (("demo", "hi", "--temperature", "-1"), None, "ValidationError", "temperature"),
        (("demo", "hi", "--max-tokens", "0"), None, "ValidationError", "max_tokens"),
        (("demo", "hi", "--adapter", "/nonesuch"), None, "ValidationError", "adapter"),
    ],
)
def test_errors_are_envelopes_with_json_and_one_line_without(
    environment: dict[str, str], words: tuple[str, ...], stdin: str | None, kind: str, said: str
) -> None:
    done = run(environment, *words, "--json", stdin=stdin)
    envelope = json.loads(done.stdout)
    assert (done.returncode, envelope["status"], envelope["data"]) == (1, "error", None)
    assert envelope["error"]["type"] == kind
    assert said in envelope["error"]["message"]
    plain = run(environment, *words, stdin=stdin)
    assert (plain.returncode, plain.stdout) == (1, "")
    assert plain.stderr.startswith("Error: ")
    assert "Traceback" not in plain.stderr


def test_a_prompt_past_the_context_is_an_error_with_both_lengths(environment: dict[str, str], tmp_path: Path) -> None:
    model = str(write_chain(tmp_path / "m", BABBLE, context=64))
    error = run(environment, model, "x" * 100).stderr
    assert "119 tokens" in error
    assert "64" in error


def test_a_damaged_model_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    folder = write_chain(tmp_path / "m", BABBLE)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    done = run(environment, str(folder), "hi", "--json")
    assert json.loads(done.stdout)["error"]["type"] == "ModelUnhealthyError"


# The first can't be loaded, the second can encode no text, the third no text that begins with special tokens.
DAMAGED: dict[str, dict[str, Any]] = {
    "normalizer": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}},
    "model": {"model": {"type": "Unigram", "unk_id": None, "vocab": [["<|im_end|>", -1.0]]}},
    "post_processor": {
        "post_processor": {
            "type": "TemplateProcessing",
            "special_tokens": {},
            "pair": [],
            "single": [{"SpecialToken": {"id": "[NO]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        }
    },
}


@pytest.mark.parametrize("part", DAMAGED)
def test_a_damaged_tokenizer_is_reported(environment: dict[str, str], tmp_path: Path, part: str) -> None:
    folder = write_chain(tmp_path / "m", BABBLE)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | DAMAGED[part]))
    done = run(environment, str(folder), "hi", "--no-chat-template", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["type"]) == (1, "ModelUnhealthyError")
    assert "tokenizer" in error["message"]
    assert "damaged" in error["message"]
    assert error["message"].endswith("). Put its files into the folder again, from where you have the model.")
    assert str(tmp_path) not in error["message"]
    plain = run(environment, str(folder), "hi", "--no-chat-template")
    assert (plain.returncode, plain.stdout) == (1, "")
    # Rust itself prints its panics on stderr.
    assert plain.stderr.splitlines()[-1] == f"Error: {error['message']}"
    assert "Traceback" not in plain.stderr


def test_an_unknown_architecture_is_reported(environment: dict[str, str], tmp_path: Path) -> None:
    folder = write_chain(tmp_path / "m", BABBLE)
    (folder / "config.json").write_text('{"model_type": "nonesuch"}')
    done = run(environment, str(folder), "hi", "--json")
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "ModelNotRunnableError"
    assert "nonesuch" in error["message"]


def test_a_closed_pipe_ends_generation_quietly(environment: dict[str, str], tmp_path: Path) -> None:
    model = str(write_chain(tmp_path / "m", BABBLE, context=100_000))
    with subprocess.Popen(
        [sys.executable, "-m", "mlxk2", "run", model, "hi"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5).isalpha()
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize("words", [(), ("--no-stream",)])
def test_ctrl_c_ends_the_answer(environment: dict[str, str], tmp_path: Path, words: tuple[str, ...]) -> None:
    out, err, code = run_interrupted(environment, tmp_path, *words)
    text, _, mark = out.rstrip("\n").rpartition("\n")
    assert (text.isalpha(), mark, err, code) == (True, "[Generation interrupted by user]", "", 130)


def test_ctrl_c_with_json_prints_the_partial_answer(environment: dict[str, str], tmp_path: Path) -> None:
    out, err, code = run_interrupted(environment, tmp_path, "--json")
    answer = json.loads(out)["data"]
    assert (answer["finish_reason"], err, code) == ("interrupted", "", 130)
    assert len(answer["response"]) == answer["tokens_generated"] > 0


def run_interrupted(environment: dict[str, str], tmp_path: Path, *words: str) -> tuple[str, str, int]:
    """Press Ctrl-C while an endless answer is generated; return stdout, stderr and the exit code."""
    model = str(write_chain(tmp_path / "m", BABBLE, context=1_000_000))
    with subprocess.Popen(
        [sys.executable, "-m", "mlxk2", "run", model, "hi", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        while not (Path(environment["HOME"]) / "waits-for-ctrl-c").exists():
            time.sleep(0.05)
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    return out, err, process.returncode
