"""The real program as a subprocess: list, show, health and --version on real caches, pipes and terminals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pexpect
import pytest
from support.conformance import assert_envelope
from support.layouts import (
    COMMIT,
    LAYOUTS,
    LFS_POINTER,
    OTHER_COMMIT,
    CacheDir,
    Layout,
    base_model,
    chat_model,
    gguf_model,
    index_of,
    replace,
    shard_names,
    sharded_model,
    weights,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

MLXK2 = [sys.executable, "-m", "mlxk2"]
SHARDS = shard_names(3)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
HEAVY = {"mlx", "mlx_lm", "transformers", "huggingface_hub", "fastapi", "pydantic", "uvicorn", "rich", "numpy"}


class Run(Protocol):
    """Run the program to its end; a change that is None removes a variable."""

    def __call__(self, *words: str, **changes: str | None) -> subprocess.CompletedProcess[bytes]: ...


class EnvelopeOf(Protocol):
    """Run the program with `--json`, check the form of its one document and return it."""

    def __call__(self, command: str, *words: str, **options: Any) -> dict[str, Any]: ...


class Terminal(Protocol):
    """Run the program on a terminal with a given width and return the lines that it shows."""

    def __call__(self, *words: str, columns: int = 80, **changes: str) -> list[str]: ...


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Return a function that runs the program to its end."""

    def start(*words: str, **changes: str | None) -> subprocess.CompletedProcess[bytes]:
        variables = {k: v for k, v in (environment | changes).items() if v is not None}
        return subprocess.run([*MLXK2, *words], capture_output=True, env=variables, timeout=60, check=False)

    return start


@pytest.fixture
def envelope(run: Run) -> EnvelopeOf:
    """Return a function that runs the program and returns its envelope."""

    def start(
        command: str, *words: str, status: str = "success", code: int | None = None, **changes: str | None
    ) -> dict[str, Any]:
        done = run(*words, "--json", **changes)
        document: dict[str, Any] = json.loads(done.stdout, parse_constant=pytest.fail)
        assert_envelope(document, command, status)
        assert done.returncode == (code if code is not None else (status == "error")), done
        assert done.stderr == b""
        return document

    return start


def fill(cache_dir: CacheDir) -> None:
    """Add a sound model of each framework."""
    cache_dir.add("mlx-community/chat", chat_model())
    cache_dir.add("mlx-community/sharded", sharded_model())
    cache_dir.add("org/base", base_model())
    cache_dir.add("org/gguf", gguf_model())


# ------------------------------------------------------------------------------------------------ the three layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_command_works_on_every_layout(
    isolated_cache: Path, run: Run, envelope: EnvelopeOf, layout: Layout
) -> None:
    fill(CacheDir(isolated_cache, layout))
    models = envelope("list", "list")["data"]["models"]
    assert [(m["name"], m["framework"], m["health"]) for m in models] == [
        ("mlx-community/chat", "MLX", "healthy"),
        ("mlx-community/sharded", "MLX", "healthy"),
        ("org/base", "PyTorch", "healthy"),
        ("org/gguf", "GGUF", "healthy"),
    ]
    assert envelope("health", "health", "--deep")["data"]["summary"]["healthy_count"] == 4
    shown = envelope("show", "show", "sharded", "--files", "--config")["data"]
    assert len(shown["files"]) == len(sharded_model())
    table = run("list", "--all", "--health").stdout.decode()
    assert len(table.splitlines()) == 5 + len(["", "the total"])
    assert "model.safetensors" in run("show", "mlx-community/chat", "--files").stdout.decode()
    assert run("health", "--deep").stdout.decode().splitlines()[-1] == "4 of 4 healthy"


# ----------------------------------------------------------------------------------------------------------- damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    replace(path, bytes(content))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda s: replace(s / SHARDS[1], (s / SHARDS[1]).read_bytes()[:-1]), f"{SHARDS[1]} is truncated"),
    "missing": (lambda s: (s / SHARDS[1]).unlink(), f"Missing shard: {SHARDS[1]}"),
    "empty": (lambda s: replace(s / SHARDS[1], b""), f"{SHARDS[1]} is empty"),
    "pointer": (lambda s: replace(s / SHARDS[1], LFS_POINTER), f"{SHARDS[1]} is a Git LFS pointer"),
    "dangling": (lambda s: (s / SHARDS[1]).resolve().unlink(), f"{SHARDS[1]} is a dangling link"),
    "broken": (lambda s: replace(s / "config.json", b'{"model_type": "lla'), "config.json is not valid JSON"),
    "partial": (lambda s: (s / "x.safetensors.incomplete").touch(), "Unfinished download: x.safetensors.incomplete"),
    "index": (lambda s: replace(s / "model.safetensors.index.json", index_of(["../x"])), "names a path outside"),
    "tokenizer": (lambda s: (s / "tokenizer.json").unlink(), "No tokenizer"),
    "flipped": (lambda s: flip(s / SHARDS[1]), f"Corrupt content: {SHARDS[1]}"),
}


@pytest.mark.parametrize("layout", ["links", "shared"])
def test_health_names_every_kind_of_damage(
    isolated_cache: Path, envelope: EnvelopeOf, run: Run, layout: Layout
) -> None:
    cache_dir = CacheDir(isolated_cache, layout)
    for number, (name, (harm, _)) in enumerate(DAMAGE.items()):
        # The shared store keeps equal bytes as one blob, so each model gets a shard with different bytes to damage.
        harm(cache_dir.add(f"org/{name}", sharded_model() | {SHARDS[1]: weights(shape=(3, 5 + number))}))
    cache_dir.add("org/sound", chat_model())
    data = envelope("health", "health", "--deep")["data"]
    reasons = {entry["name"].removeprefix("org/"): entry["reason"] for entry in data["unhealthy"]}
    assert set(reasons) >= set(DAMAGE)
    assert {name: expected in reasons[name] for name, (_, expected) in DAMAGE.items()} == dict.fromkeys(DAMAGE, True)
    assert [entry["name"] for entry in data["healthy"]] == ["org/sound"]
    assert b"is truncated" in run("list", "--all", "--health", "--verbose").stdout


# ------------------------------------------------------------------------------------------------------- wrong usage


WRONG = [
    ([], "version"),
    (["--frobnicate"], "version"),
    (["frobnicate"], "version"),
    (["lst"], "version"),
    (["show"], "show"),
    (["show", "a", "b"], "show"),
    (["list", "--frobnicate"], "list"),
    (["list", "--heal"], "list"),
    (["health", "--deep", "--all"], "health"),
    (["pull"], "pull"),
    (["rm"], "rm"),
    (["run"], "run"),
    (["run", "demo", "x", "--max-tokens", "many"], "run"),
    (["run", "demo", "x", "--temperature"], "run"),
    (["serve", "--port", "x"], "server"),
    (["server", "--port"], "server"),
    (["clone", "a", "b"], "clone"),
    (["push"], "push"),
]


@pytest.mark.parametrize(("words", "command"), WRONG)
def test_wrong_usage_with_json_prints_one_error_envelope(envelope: EnvelopeOf, words: list[str], command: str) -> None:
    error = envelope(command, *words, status="error", code=2)["error"]
    assert error["type"] == "CommandError"
    assert "usage:" not in error["message"].lower()


@pytest.mark.parametrize("words", [["list", "--frobnicate"], ["frobnicate"], ["show"]])
def test_wrong_usage_prints_the_usage_on_stderr(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"usage: mlxk2" in done.stderr
    assert b"Error: " in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["push", "clone"])
def test_alpha_commands_need_their_environment_variable(envelope: EnvelopeOf, run: Run, command: str) -> None:
    error = envelope(command, command, "a", "b/c", status="error", code=2)["error"]
    assert "MLXK2_ENABLE_ALPHA_FEATURES" in error["message"]
    assert f" {command} ".encode() in run("--help").stdout


def test_version_works_without_a_cache(envelope: EnvelopeOf, run: Run) -> None:
    data = envelope("version", "--version", HF_HUB_CACHE="/dev/null")["data"]
    assert run("--version").stdout.decode() == f"mlxk2 {data['cli_version']}\n"


@pytest.mark.parametrize("place", [("--json", "list"), ("list", "--json")])
def test_json_flag_works_before_and_after_the_command(run: Run, place: tuple[str, ...]) -> None:
    assert_envelope(json.loads(run(*place).stdout), "list")


# ---------------------------------------------------------------------------------------------------------- errors


def test_each_error_has_its_type_and_exit_code(isolated_cache: Path, envelope: EnvelopeOf) -> None:
    cache_dir = CacheDir(isolated_cache)
    fill(cache_dir)
    cache_dir.add("org/chat-2", chat_model(), OTHER_COMMIT)
    cache_dir.add("org/chat-2", chat_model(), COMMIT)
    cases = {
        ("show", "nowhere"): "model_not_found",
        ("show", "org"): "ambiguous_match",
        ("health", "org"): "ambiguous_match",
        ("show", "org/chat-2@fff"): "hash_not_found",
        ("show", "a..b"): "ValidationError",
        ("show", "./nowhere"): "model_not_found",
    }
    for words, kind in cases.items():
        assert envelope(words[0], *words, status="error")["error"]["type"] == kind
    assert envelope("show", "show", "org/chat-2@abc")["data"]["model"]["hash"] == OTHER_COMMIT
    assert envelope("show", "show", "org/chat-2@main")["data"]["model"]["hash"] == COMMIT
    assert envelope("health", "health", "nowhere")["data"]["summary"]["total"] == 0


@pytest.mark.parametrize("command", ["list", "health"])
def test_a_cache_path_that_is_a_file_is_an_error(envelope: EnvelopeOf, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    error = envelope(command, command, status="error", HF_HUB_CACHE=str(tmp_path / "file"))["error"]
    assert error["type"] == "OperationError"
    assert str(tmp_path) not in json.dumps(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_cache_without_read_permission_is_an_error(isolated_cache: Path, envelope: EnvelopeOf) -> None:
    isolated_cache.chmod(0)
    try:
        assert "denied" in envelope("list", "list", status="error")["error"]["message"]
    finally:
        isolated_cache.chmod(0o755)


def test_cache_variables_have_the_precedence_of_huggingface_hub(tmp_path: Path, envelope: EnvelopeOf) -> None:
    for name in ("home/hub", "new", "old"):
        (tmp_path / name).mkdir(parents=True)
        CacheDir(tmp_path / name).add(f"org/{name[:4]}", chat_model())
    places: dict[str, str | None] = {
        "HF_HUB_CACHE": str(tmp_path / "new"),
        "HUGGINGFACE_HUB_CACHE": str(tmp_path / "old"),
        "HF_HOME": str(tmp_path / "home"),
    }
    for variable, expected in zip(list(places), ("org/new", "org/old", "org/home"), strict=True):
        (model,) = envelope("list", "list", **places)["data"]["models"]
        assert model["name"] == expected
        places[variable] = None
    CacheDir(tmp_path / ".cache" / "huggingface" / "hub").path.mkdir(parents=True)
    assert envelope("list", "list", HOME=str(tmp_path), **places)["data"]["count"] == 0
    assert envelope("list", "list", **(places | {"HF_HOME": "$PLACE/home"}), PLACE=str(tmp_path))["data"]["count"] == 1


# ------------------------------------------------------------------------------------------------ pipes and signals


@pytest.mark.parametrize("words", ["list --json", "list --all", "--help", "--version", "health"])
def test_a_closed_pipe_ends_the_program_quietly(isolated_cache: Path, environment: dict[str, str], words: str) -> None:
    cache_dir = CacheDir(isolated_cache)
    for number in range(20):
        cache_dir.add(f"org/model-{number:03}-{'x' * 60}", chat_model())
    line = f"set -o pipefail; '{sys.executable}' -m mlxk2 {words} | true"
    done = subprocess.run(["bash", "-c", line], capture_output=True, env=environment, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)


def test_head_prints_the_whole_first_line(isolated_cache: Path, environment: dict[str, str]) -> None:
    fill(CacheDir(isolated_cache))
    line = f"'{sys.executable}' -m mlxk2 list --all | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, env=environment, timeout=60, check=False)
    assert done.stdout.split() == [b"Name", b"Hash", b"Size", b"Modified", b"Framework", b"Type"]
    assert done.stderr == b""


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
@pytest.mark.parametrize("words", ["list --json", "--version"])
def test_closed_standard_streams_cause_no_error(
    isolated_cache: Path, environment: dict[str, str], words: str, redirection: str
) -> None:
    fill(CacheDir(isolated_cache))
    line = f"'{sys.executable}' -m mlxk2 {words} {redirection}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.usefixtures("isolated_cache")
def test_a_closed_stdin_counts_as_an_empty_prompt(environment: dict[str, str]) -> None:
    line = f"'{sys.executable}' -m mlxk2 run demo --json <&-"
    done = subprocess.run(["bash", "-c", line], capture_output=True, env=environment, timeout=60, check=False)
    assert (json.loads(done.stdout)["error"]["message"], done.returncode) == ("The prompt is empty.", 1)


@pytest.mark.usefixtures("isolated_cache")
def test_with_stderr_closed_an_error_does_not_go_to_stdout(environment: dict[str, str]) -> None:
    line = f"'{sys.executable}' -m mlxk2 show nonesuch 2>&-"
    done = subprocess.run(["bash", "-c", line], capture_output=True, env=environment, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
@pytest.mark.parametrize("words", ["list --json", "--version"])
def test_output_to_a_full_disk_is_a_one_line_error(
    isolated_cache: Path, environment: dict[str, str], words: str
) -> None:
    fill(CacheDir(isolated_cache))
    line = f"'{sys.executable}' -m mlxk2 {words} > /dev/full"
    done = subprocess.run(["bash", "-c", line], capture_output=True, env=environment, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == b"Error: The operating system refused: No space left on device.\n"


@pytest.mark.parametrize("words", [["--json"], []])
def test_an_interrupted_deep_check_exits_with_130(
    isolated_cache: Path, environment: dict[str, str], words: list[str]
) -> None:
    snapshot = CacheDir(isolated_cache).add("org/model", chat_model())
    blob = (snapshot / "tokenizer.json").resolve()
    with blob.open("r+b") as file:
        file.truncate(60_000_000_000)  # a hole takes no space but a minute to hash
    command = [*MLXK2, "health", "--deep", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    _wait_until_open(process, blob)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in err
    if words:
        assert json.loads(out)["error"]["type"] == "interrupted"
    else:
        assert (out, err) == (b"", b"Error: Interrupted.\n")


def _wait_until_open(process: subprocess.Popen[bytes], path: Path) -> None:
    """Wait until a process reads a file; without /proc, sleep long enough."""
    folder = f"/proc/{process.pid}/fd"
    for _ in range(400):
        time.sleep(0.05)
        if not os.path.isdir(folder):
            time.sleep(2)
            return
        if process.poll() is not None or str(path) in _open_files(folder):
            return


def _open_files(folder: str) -> list[str]:
    files = []
    for name in os.listdir(folder):
        try:
            files.append(os.readlink(os.path.join(folder, name)))
        except FileNotFoundError:
            continue  # the file was closed
    return files


# -------------------------------------------------------------------------------------------------------- terminals


@pytest.fixture
def terminal(isolated_cache: Path, environment: dict[str, str]) -> Terminal:
    """Return a function that runs the program on a terminal."""

    def start(*words: str, columns: int = 80, **changes: str) -> list[str]:
        environment_of_it = environment | {"COLUMNS": "500"} | changes
        child = pexpect.spawn(
            MLXK2[0],
            [*MLXK2[1:], *words],
            env=environment_of_it,
            dimensions=(24, columns),
            encoding="utf-8",
            timeout=30,
        )
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
        shown: str = child.before
        return shown.splitlines()

    fill(CacheDir(isolated_cache))
    return start


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("words", [("list", "--all", "--health", "--verbose"), ("health",), ("show", "chat")])
def test_terminal_output_has_colours_and_fits_the_width(
    terminal: Terminal, columns: int, words: tuple[str, ...]
) -> None:
    lines = terminal(*words, columns=columns)
    assert any(COLOUR.search(line) for line in lines)
    assert max(len(COLOUR.sub("", line)) for line in lines) <= columns
    shown = "".join(COLOUR.sub("", line) for line in lines)
    assert "healthy" in shown or columns == 40


def test_no_color_removes_colours(terminal: Terminal) -> None:
    lines = terminal("list", "--all", "--health", NO_COLOR="1")
    assert not any(re.search(r"\x1b\[[0-9;]*3[0-9]", line) for line in lines)
    assert any(re.search(r"\x1b\[[0-9;]*3[0-9]", line) for line in terminal("list", "--all", "--health"))


def test_a_dumb_terminal_gets_no_escape_codes(terminal: Terminal) -> None:
    assert not any("\x1b" in line for line in terminal("list", "--all", "--health", TERM="dumb"))


@pytest.mark.parametrize("forced", ["FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"])
def test_a_pipe_gets_no_escape_codes(isolated_cache: Path, run: Run, forced: str) -> None:
    fill(CacheDir(isolated_cache))
    for words in (("list", "--all", "--health"), ("show", "chat"), ("health", "--deep")):
        done = run(*words, **{forced: "1"})
        assert b"\x1b" not in done.stdout + done.stderr
        assert done.stderr == b""


@pytest.mark.parametrize(("locale", "encoding"), [("C", None), ("C.UTF-8", None), ("POSIX", "ascii"), ("C", "latin-1")])
def test_names_in_any_script_print_in_any_locale(
    isolated_cache: Path, run: Run, locale: str, encoding: str | None
) -> None:
    cache_dir = CacheDir(isolated_cache)
    cache_dir.add("组织/模型-chat", chat_model() | {"données.txt": b"x"})
    changes = {"LANG": locale, "LC_ALL": locale, "PYTHONIOENCODING": encoding}
    done = run("list", "--all", **changes)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "模型".encode() in done.stdout or rb"\u6a21\u578b" in done.stdout
    assert json.loads(run("list", "--json", **changes).stdout)["data"]["models"][0]["name"] == "组织/模型-chat"
    assert run("show", "组织/模型-chat", "--files", **changes).returncode == 0


# ---------------------------------------------------------------------------------------------------------- imports


@pytest.mark.parametrize(
    "words", [["list", "--json"], ["health", "--json"], ["show", "mlx-community/chat", "--json"], ["--version"]]
)
def test_light_commands_import_no_heavy_library(
    isolated_cache: Path, environment: dict[str, str], words: list[str]
) -> None:
    fill(CacheDir(isolated_cache))
    command = [sys.executable, "-X", "importtime", "-m", "mlxk2", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "mlxk2" in imported
    assert imported & HEAVY <= ({"rich"} if words == ["--version"] else set())
