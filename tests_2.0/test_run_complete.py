"""`run` without MLX: errors that are found before MLX is imported, and complete runs on stubs of MLX."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest_runner import generate, saying, streams
from support.following import text
from support.layouts import CacheDir, chat_model, without

from mlxk2.chat.printer import Printer, replace_controls
from mlxk2.errors import ModelNotRunnableError
from mlxk2.runner.events import TextDelta
from mlxk2.runner.offline import offline

STUBS = Path(__file__).parent / "stubs"

Program = Callable[..., Any]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("nonesuch", "hi"), "model_not_found"),
        (("./nonesuch/x", "hi"), "model_not_found"),
        (("a//b", "hi"), "ValidationError"),
        (("demo", "hi", "--top-p", "2"), "ValidationError"),
        (("demo", "hi", "--max-tokens", "-1"), "ValidationError"),
        (("demo", "hi", "--seed", "99999999999999999999999"), "ValidationError"),
        (("demo", "\udcff"), "ValidationError"),
        (("demo", "hi", "--system", "\udcff"), "ValidationError"),
        (("demo", ""), "ValidationError"),
    ],
)
def test_errors_are_found_before_mlx_is_imported(mlxk2: Program, words: tuple[str, ...], kind: str) -> None:
    result = mlxk2("run", *words, "--json")
    assert (result.code, result.json["status"], result.json["command"]) == (1, "error", "run")
    assert result.json["error"]["type"] == kind


@pytest.mark.parametrize("words", [("demo", "hi", "--max-tokens", "many"), ("demo", "hi", "--nonesuch"), ()])
def test_a_wrong_command_line_gives_exit_code_2(mlxk2: Program, words: tuple[str, ...]) -> None:
    result = mlxk2("run", *words, "--json")
    assert (result.code, result.json["error"]["type"], result.json["command"]) == (2, "CommandError", "run")


def test_a_prompt_without_quotes_is_an_error_that_shows_how_to_quote(mlxk2: Program) -> None:
    plain, flagged = mlxk2("run", "demo", "a", "b", "c"), mlxk2("run", "demo", "a", "--nonesuch")
    assert plain.err.startswith("usage: mlxk2 run ")
    hint = 'A prompt of several words needs quotes: mlxk2 run MODEL "several words"'
    assert plain.err.endswith(f"Error: Unrecognized arguments: b c\n{hint}\n")
    assert "quotes" in mlxk2("run", "demo", "a", "b", "--json").json["error"]["hint"]
    assert (flagged.code, "quotes" in flagged.err) == (2, False)
    assert mlxk2("list", "a", "b").err.startswith("usage: mlxk2 list ")
    assert mlxk2("--version", "--nonesuch").err.startswith("usage: mlxk2 [")


def test_a_model_that_cannot_run_is_an_error_that_names_it(mlxk2: Program, cache_dir: CacheDir) -> None:
    cache_dir.add("org/gguf", {"model.gguf": b"GGUF" + b"\0" * 100})
    result = mlxk2("run", "org/gguf", "hi", "--json")
    assert result.json["error"]["type"] in ("ModelUnhealthyError", "ModelNotRunnableError")
    assert "org/gguf" in result.json["error"]["message"]
    plain = mlxk2("run", "org/gguf", "hi")
    assert plain.err.startswith("Error: org/gguf ")
    assert plain.out == ""


def test_the_hint_names_the_pull_that_repairs_the_model(mlxk2: Program, cache_dir: CacheDir, tmp_path: Path) -> None:
    cache_dir.add("org/whole", without(chat_model(), "tokenizer.json"), ref="v1")
    (cache_dir.folder("org/begun") / "blobs").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    for argument, hint in (
        ("org/whole", "Repair it with: mlxk2 pull org/whole"),
        ("whole@v1", "Repair it with: mlxk2 pull org/whole@v1"),
        ("org/begun", "Repair it with: mlxk2 pull org/begun"),
        (str(tmp_path / "mine"), None),
    ):
        error = mlxk2("run", argument, "hi", "--json").json["error"]
        assert (error["type"], error.get("hint")) == ("ModelUnhealthyError", hint)


def test_a_wrong_name_is_found_without_importing_mlx() -> None:
    assert not imported_modules("run", "nonesuch", "hi", "--json") & {
        "mlx",
        "mlx.core",
        "mlx_lm",
        "transformers",
        "prompt_toolkit",
    }


@pytest.mark.usefixtures("isolated_cache")
@pytest.mark.parametrize("words", [("list",), ("health",), ("run", "nonesuch", "hi")])
def test_json_output_imports_no_rendering(words: tuple[str, ...]) -> None:
    assert not imported_modules(*words, "--json") & {"rich", "mlxk2.cli.render", "mlxk2.spec"}


@pytest.mark.e2e
def test_running_a_model_imports_no_library_for_tokenizers_or_the_hub() -> None:
    modules = imported_modules("run", "demo", "hi")
    assert "mlx_lm" in modules
    assert not modules & {"transformers", "huggingface_hub"}


def imported_modules(*words: str) -> set[str]:
    """Return the modules that a run of the program imports."""
    code = f"import sys; from mlxk2.cli.main import main; main({words!r}); sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stderr.split())


def test_printed_text_is_the_joined_deltas() -> None:
    chunks = generate(saying("Hello.\n\n  Bye \n"))
    shown = streams().stdout
    printer = Printer(shown, hide_reasoning=False)
    for chunk in chunks:
        printer.show(chunk)
    printer.end(interrupted=False)
    assert shown.getvalue() == text(chunks) == "Hello.\n\n  Bye \n"


def test_control_characters_are_replaced_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, pipe = Terminal(), streams().stdout
    for stream in (terminal, pipe):
        Printer(stream, hide_reasoning=False).show(TextDelta("content", "a\x1b[2J\tb\x07\n\x9b"))
    assert terminal.getvalue() == "a\ufffd[2J\tb\ufffd\n\ufffd"
    assert pipe.getvalue() == "a\x1b[2J\tb\x07\n\x9b"


@pytest.mark.parametrize("mark", ["\u202e", "\u2066", "\u200b", "\u2028", "\u2029", "\ufeff", "\U000e0041", "\x85"])
def test_characters_that_reorder_text_are_replaced(mark: str) -> None:
    assert replace_controls(f"a{mark}b") == "a\ufffdb"


@pytest.mark.parametrize("text", ["👩\u200d🚀 ❤\ufe0f", "می\u200cخواهم", "עברית\u200f!", "a\u00a0b\u3000c\td\n"])
def test_text_in_any_script_is_shown_unchanged(text: str) -> None:
    assert replace_controls(text) == text


def test_imports_happen_offline_and_restore_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sees_environment.py").write_text("import os\nseen = os.environ['HF_HUB_OFFLINE']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with offline():
        assert import_module("sees_environment").seen == "1"
    assert "HF_HUB_OFFLINE" not in os.environ


def test_a_missing_mlx_is_an_error_with_its_cause(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "needs_mlx.py").write_text("import nonesuch_mlx\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelNotRunnableError, match="can't be imported: No module named 'nonesuch_mlx'"), offline():
        import_module("needs_mlx")


@pytest.fixture
def stubbed(tmp_path: Path) -> Program:
    """Return a function that runs the program, with stubs of mlx and mlx_lm and a folder like a model, from bash."""
    folder = tmp_path / "stubbed"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 64}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    (folder / "README.md").write_text("---\ntags: [mlx]\n---\n")
    header = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")

    def run(*words: str, shell: str = "ask < /dev/null") -> subprocess.CompletedProcess[str]:
        ask = shlex.join([sys.executable, "-m", "mlxk2", "run", str(folder), *words])
        return subprocess.run(
            ["bash", "-c", f'ask() {{ {ask} "$@"; }}; {shell}'],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(STUBS)},
            cwd=tmp_path,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )

    return run


def test_run_works_on_stubs(stubbed: Program) -> None:
    done = stubbed("Hello", "--json")
    assert done.stderr == ""
    data = json.loads(done.stdout)["data"]
    assert (data["response"], data["finish_reason"]) == ("user:Hello", "stop")
    assert (data["prompt_tokens"], data["tokens_generated"]) == (10, 11)


def test_streaming_and_limits_work_on_stubs(stubbed: Program) -> None:
    assert stubbed("Hello").stdout == "user:Hello\n"
    assert stubbed("Hello", "--max-tokens", "4").stdout == stubbed("--max-tokens", "4", "Hello").stdout == "user\n"
    assert stubbed("Hello", "--no-chat-template", "--no-stream").stdout == "Hello\n"


def test_text_on_stdin_comes_before_the_prompt(stubbed: Program) -> None:
    done = stubbed("Sum up.", "--json", shell=r"printf 'Some\n notes\n\n' | ask")
    assert (done.stderr, json.loads(done.stdout)["data"]["prompt"]) == ("", "Some\n notes\n\nSum up.")
    assert stubbed("Sum up.", shell="echo notes > file; ask < file").stdout == "user:notes\n\nSum up.\n"
    assert (
        stubbed("-", shell="echo notes | ask").stdout == stubbed("", shell="echo notes | ask").stdout == "user:notes\n"
    )


def test_an_empty_stdin_does_not_change_the_prompt(stubbed: Program) -> None:
    # With nohup, stdin is open for writing only.
    for shell in ("ask <&-", "ask < /dev/null", "ask 0> /dev/null", ": | ask", "echo ' ' | ask"):
        done = stubbed("Hello", shell=shell)
        assert (shell, done.stdout, done.stderr) == (shell, "user:Hello\n", "")


def test_run_in_a_shell_loop_leaves_the_loops_input_unread(stubbed: Program) -> None:
    done = stubbed(shell=r"""printf 'a\nb\nc\n' > list; while read -r line; do ask "$line"; done < list""")
    assert (done.stdout, done.stderr) == ("user:a\nuser:b\nuser:c\n", "")


def test_waiting_for_a_silent_pipe_prints_a_warning(stubbed: Program) -> None:
    wait = "for i in {1..500}; do grep -q Waiting log && break; sleep 0.1; done"
    done = stubbed("Hello", shell=f"touch log; {{ {wait}; echo late; }} | ask 2> log; cat log >&2")
    assert done.stdout == "user:late\n\nHello\n"
    assert done.stderr == "Warning: Waiting for text on stdin. If there is none, add < /dev/null to the command.\n"


@pytest.mark.parametrize("words", [("Hello",), ()])
def test_text_on_stdin_must_be_utf8(stubbed: Program, words: tuple[str, ...]) -> None:
    done = stubbed(*words, "--json", shell=r"printf 'caf\xe9' | ask")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["type"]) == (1, "ValidationError")
    assert error["message"].startswith("The text on stdin is not UTF-8 text: ")


def test_a_prompt_past_the_context_is_refused_on_stubs(stubbed: Program) -> None:
    done = stubbed("x" * 100)
    assert (done.returncode, done.stdout) == (1, "")
    assert "105 tokens" in done.stderr
    assert "64" in done.stderr


def test_a_panic_of_a_library_is_an_operation_error(stubbed: Program) -> None:
    done = stubbed("\a", "--no-chat-template", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["error"]["type"] == "OperationError"
    assert "PanicException" in json.loads(done.stdout)["error"]["message"]
    plain = stubbed("\a", "--no-chat-template")
    assert (plain.returncode, plain.stdout, plain.stderr.count("\n")) == (1, "", 1)
    # The cause is quoted, but without token and password.
    assert plain.stderr.startswith("Error: Unexpected PanicException: index out of bounds,  at https://hub. Set ")
