"""The program in unusual environments: low limits, a deleted folder, foreign variables, impatient users."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.serving import Server

pytestmark = pytest.mark.e2e

PROGRAM = [sys.executable, "-m", "mlxk2"]
ASK = ["run", "demo", "What is 3 + 4?", "--temperature", "0"]


def shell(environment: dict[str, str], before: str, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program in a shell, after some commands."""
    script = ["bash", "-c", f'{before} "$@"', "bash", *PROGRAM, *words]
    streams: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "stdin": subprocess.DEVNULL, "timeout": 120}
    done: subprocess.CompletedProcess[str] = subprocess.run(script, env=environment, check=False, **streams | options)
    return done


@pytest.mark.parametrize("limit", [512, 1024, 4095])
def test_run_works_with_a_low_limit_of_open_files(environment: dict[str, str], limit: int) -> None:
    done = shell(environment, f"ulimit -n {limit} &&", *ASK)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 + 4 = 7.\n", "")


def test_the_server_keeps_the_users_limit_of_open_files(tmp_path: Path) -> None:
    limits = Path("/proc/self/limits")
    if not limits.exists():
        pytest.skip("there is no /proc here")
    with Server("--model", "demo", home=tmp_path) as server:
        mine, its = limits.read_text(), Path(f"/proc/{server.process.pid}/limits").read_text()
    (of_mine,), (of_its,) = (
        [line.split()[3:5] for line in text.splitlines() if "open files" in line] for text in (mine, its)
    )
    assert of_its[1] == of_mine[1]
    assert int(of_its[0]) >= int(of_mine[0])


def test_run_works_in_a_deleted_working_folder(environment: dict[str, str], tmp_path: Path) -> None:
    done = shell(environment, f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone &&", *ASK)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 + 4 = 7.\n", "")


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONOPTIMIZE": "2"},
        {"MLXLM_USE_MODELSCOPE": "True"},
        {"HF_HUB_ETAG_TIMEOUT": "abc"},
        {"HF_HUB_DOWNLOAD_TIMEOUT": ""},
        {"HF_ENDPOINT": "garbage", "HF_HUB_ENABLE_HF_TRANSFER": "1"},
    ],
)
def test_run_works_with_environment_variables_of_other_programs(
    environment: dict[str, str], variables: dict[str, str]
) -> None:
    done = shell(environment | variables, "", *ASK, "--json")
    assert json.loads(done.stdout)["data"]["response"] == "3 + 4 = 7."


@pytest.mark.parametrize("variable", ["HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"])
def test_an_invalid_hub_timeout_is_an_error_that_names_the_variable(environment: dict[str, str], variable: str) -> None:
    done = shell(environment | {variable: "abc"}, "", "pull", "org/model", "--json")
    assert json.loads(done.stdout)["error"]["message"] == f"{variable} is not a whole number of seconds: 'abc'."


@pytest.mark.parametrize("prompt", [[], ["Sum up."]])
def test_an_endless_stdin_is_refused(environment: dict[str, str], prompt: list[str]) -> None:
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        done = shell(environment, "", "run", "demo", *prompt, "--json", stdin=endless.stdout)
        endless.kill()
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["type"]) == (1, "context_length_exceeded")
    assert "has 4096 tokens" in error["message"]


# Creates a file as soon as the program installs its handler for Ctrl-C; earlier, only Python itself has run.
LISTENS = """
import signal
listen = signal.signal
def note(number, handler):
    before = listen(number, handler)
    if number == signal.SIGINT:
        open({file!r}, "w").close()
    return before
signal.signal = note
"""


@pytest.mark.parametrize("words", [["serve", "--port", "0"], ["run", "demo", "Hello"], ["list"]], ids=lambda w: w[0])
@pytest.mark.parametrize("delay", [0, 0.05, 0.4])
def test_repeated_ctrl_c_ends_without_a_traceback(
    environment: dict[str, str], tmp_path: Path, words: list[str], delay: float
) -> None:
    listens = tmp_path / "listens"
    (tmp_path / "sitecustomize.py").write_text(LISTENS.format(file=str(listens)))
    variables = environment | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen([*PROGRAM, *words], env=variables, stderr=subprocess.PIPE, text=True) as process:
        while not listens.exists() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(delay)
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.002)
        _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    assert process.returncode in (0, 130, -signal.SIGINT)  # the second Ctrl-C ends a running server at once
