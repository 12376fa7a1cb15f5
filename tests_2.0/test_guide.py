"""The promises of TESTING.md: commands, opt-in tests, counts, several Pythons."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from support.filesystems import read_tree
from support.hub import HubServer
from support.hub.fixtures import Client
from support.layouts import CacheDir, base_model, chat_model, gguf_model, sharded_model, without
from support.tiny_models import say, write_chain

ROOT = Path(__file__).parent.parent
LIMIT_SECONDS = 240
INDEX = "model.safetensors.index.json"


class Run(NamedTuple):
    """The exit code and the output of a run of pytest."""

    code: int
    out: str

    def count(self, outcome: str) -> int:
        """Return how many tests had this outcome, by pytest's last line."""
        found = re.search(rf"(\d+) {outcome}", self.out.splitlines()[-1])
        return int(found[1]) if found else 0


def run_pytest(*words: str, **environment: str) -> Run:
    """Run pytest in the project's folder, with these variables and without the settings of this run."""
    own = ("PYTEST_", "MLXK2_", "HF_", "HUGGINGFACE_", "COV_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *words]
    finished = subprocess.run(
        command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True, timeout=LIMIT_SECONDS
    )
    return Run(finished.returncode, finished.stdout + finished.stderr)


def assert_all_passed(run: Run, count: int) -> None:
    """Fail unless this many tests passed and none was skipped."""
    assert (run.code, run.count("passed"), run.count("skipped")) == (0, count, 0), run.out


@pytest.mark.e2e
@pytest.mark.slow
def test_the_counts_files_and_commands_of_testing_md_are_right() -> None:
    command = [sys.executable, "tools/count_tests.py", "--check"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.mark.e2e
@pytest.mark.slow
def test_the_suite_runs_in_parallel_with_a_timeout_and_coverage(tmp_path: Path) -> None:
    options = ("-n", "2", "--timeout=60", "--durations=10", "--cov=mlxk2", f"--cov-report=html:{tmp_path / 'html'}")
    run = run_pytest(*options, "tests_2.0/test_model_naming.py", COVERAGE_FILE=str(tmp_path / "coverage"))
    assert run.code == 0, run.out
    assert "slowest 10 durations" in run.out
    assert "names.py" in (tmp_path / "html" / "index.html").read_text(encoding="utf-8")


@pytest.mark.e2e
@pytest.mark.slow
def test_opt_in_tests_say_what_they_need() -> None:
    run = run_pytest(
        "-m", "wet or issue27 or live_list or live_push or live_clone", "tests_2.0/live", "tests_2.0/test_issue_27.py"
    )
    assert (run.code, run.count("passed")) == (0, 0), run.out
    for reason in (
        "live_list needs HF_HOME",
        "live_push needs MLXK2_ENABLE_ALPHA_FEATURES, MLXK2_LIVE_PUSH, HF_TOKEN, MLXK2_LIVE_REPO",
        "live_clone needs MLXK2_ENABLE_ALPHA_FEATURES, MLXK2_LIVE_CLONE, HF_TOKEN, MLXK2_LIVE_CLONE_MODEL",
        "issue27 needs MLXK2_USER_HF_HOME or HF_HOME",
    ):
        assert reason in run.out


# -------------------------------------------------------------------- opt-in tests on a local hub and a prepared cache


def model_of(folder: Path) -> Mapping[str, bytes]:
    """Return the files of a model that runs."""
    write_chain(folder, say("H", "i"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.e2e
@pytest.mark.slow
def test_live_clone_runs(hub_server: HubServer, hub_client: Client, tmp_path: Path) -> None:
    hub_server.add("mlx-community/small-model", model_of(tmp_path / "model"))
    (tmp_path / "workspace").mkdir()
    run = run_pytest(
        "-m",
        "live_clone",
        "tests_2.0/live",
        **hub_client.environment
        | {
            "MLXK2_LIVE_CLONE": "1",
            "HF_TOKEN": hub_server.token("user"),
            "MLXK2_LIVE_CLONE_MODEL": "mlx-community/small-model",
            "MLXK2_LIVE_CLONE_WORKSPACE": str(tmp_path / "workspace"),
        },
    )
    assert_all_passed(run, 3)
    assert list((tmp_path / "workspace").iterdir()) == []


@pytest.mark.e2e
@pytest.mark.slow
def test_live_push_runs(hub_server: HubServer, hub_client: Client, tmp_path: Path) -> None:
    hub_server.add("user/my-model", {"README.md": b"# To be replaced\n"}, private=True, readers=["user"])
    files = model_of(tmp_path / "workspace")
    run = run_pytest(
        "-m",
        "wet",
        "tests_2.0/live/test_push_live.py",
        **hub_client.environment
        | {
            "MLXK2_LIVE_PUSH": "1",
            "HF_TOKEN": hub_server.token("user"),
            "MLXK2_LIVE_REPO": "user/my-model",
            "MLXK2_LIVE_WORKSPACE": str(tmp_path / "workspace"),
        },
    )
    assert_all_passed(run, 2)
    commit = hub_server.hub.repos["user/my-model"].find("main")
    assert commit is not None and set(commit.files) == set(files)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a typical user's cache: models of several kinds, one of them damaged."""
    cache_dir = CacheDir(tmp_path / "cache" / "hub")
    cache_dir.add("mlx-community/Small-4bit", chat_model())
    cache_dir.add("mlx-community/Base-4bit", without(chat_model(), "tokenizer_config.json"))
    cache_dir.add("org/model-gguf", gguf_model())
    cache_dir.add("org/damaged", without(base_model(), "model.safetensors"))
    cache_dir.add("upstream/Sharded-Instruct", sharded_model())
    return tmp_path / "cache"


@pytest.mark.e2e
@pytest.mark.slow
def test_live_list_runs(home: Path) -> None:
    before = read_tree(home)
    assert_all_passed(run_pytest("-m", "live_list", "tests_2.0/live", HF_HOME=str(home)), 3)
    assert read_tree(home) == before


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("variable", ["HF_HOME", "MLXK2_USER_HF_HOME"])
def test_issue27_runs_on_the_users_cache(home: Path, variable: str) -> None:
    before = read_tree(home)
    model = {"MLXK2_ISSUE27_MODEL": "upstream/Sharded-Instruct"}
    run = run_pytest("-m", "issue27", "tests_2.0/test_issue_27.py", **{variable: str(home)}, **model)
    assert_all_passed(run, 7)
    assert read_tree(home) == before


@pytest.mark.e2e
@pytest.mark.slow
def test_issue27_fetches_an_index_that_the_cache_lacks(hub_server: HubServer, hub_client: Client, home: Path) -> None:
    hub_server.add("upstream/Unindexed", {INDEX: sharded_model()[INDEX]})
    CacheDir(home / "hub").add("upstream/Unindexed", without(sharded_model(), INDEX))
    before = read_tree(home)
    settings = hub_client.environment | {
        "MLXK2_USER_HF_HOME": str(home),
        "MLXK2_ISSUE27_MODEL": "mlx-community/Small-4bit",
        "MLXK2_ISSUE27_INDEX_MODEL": "upstream/Unindexed",
    }
    refused = run_pytest("-m", "issue27", "tests_2.0/test_issue_27.py", **settings)
    assert "No safetensors index found; MLXK2_BOOTSTRAP_INDEX=1 would download one" in refused.out
    assert hub_server.log.requests == []
    run = run_pytest("-m", "issue27", "tests_2.0/test_issue_27.py", **settings, MLXK2_BOOTSTRAP_INDEX="1")
    assert_all_passed(run, 7)
    assert read_tree(home) == before


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "passed", "reason"),
    [
        ({"MLXK2_SUBSET_COUNT": "0"}, 3, "MLXK2_SUBSET_COUNT=0 copies no shard"),
        ({"MLXK2_SUBSET_COUNT": "3"}, 6, "all shards of this model were copied"),
        ({"MLXK2_MIN_FREE_MB": str(1 << 40)}, 1, "Not enough free space"),
        ({"MLXK2_ISSUE27_MODEL": "org/not-there"}, 0, "User model not found: org/not-there"),
    ],
)
def test_issue27_skips_tests_that_cannot_run(home: Path, setting: dict[str, str], passed: int, reason: str) -> None:
    run = run_pytest("-m", "issue27", "tests_2.0/test_issue_27.py", HF_HOME=str(home), **setting)
    assert (run.code, run.count("passed"), run.count("skipped")) == (0, passed, 7 - passed), run.out
    assert reason in run.out


# --------------------------------------------------------------------------------------------------- several Pythons

STAND_IN = """#!/bin/sh
case "$1 $2" in
  "-c "*) echo {release} ;;
  "-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
  "-m pip") echo installed ;;
  "-m pytest") shift 2; echo "pytest was given: $*"; echo "===== {counts} in 61.20s (0:01:01) ====="; exit {code} ;;
esac
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Return a copy of the script in a new folder, where it writes its files."""
    return Path(shutil.copy(ROOT / "test-multi-python.sh", tmp_path))


def python(folder: Path, release: str, counts: str = "3 passed, 1 skipped", code: int = 0) -> str:
    """Write a program that imitates a Python of this release."""
    folder.mkdir(exist_ok=True)
    path = folder / f"python{release}"
    path.write_text(STAND_IN.format(release=release, counts=counts, code=code))
    path.chmod(0o755)
    return str(path)


def run_script(script: Path, *words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script where it finds only these Pythons."""
    environment = {"HOME": str(script.parent), "PATH": f"{path}:{script.parent / 'tools'}"}
    tools = script.parent / "tools"
    tools.mkdir(exist_ok=True)
    for tool in ("bash", "cp", "dirname", "grep", "mkdir", "sed", "tail"):
        if not (tools / tool).exists():
            (tools / tool).symlink_to(shutil.which(tool) or tool)
    return subprocess.run(
        [tools / "bash", script, *words], env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS
    )


def summary(finished: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """Return the release and the result in each line of the summary."""
    return [line.split()[:2] for line in finished.stdout.splitlines()[2:]]


def test_every_python_that_is_found_is_tested(script: Path, tmp_path: Path) -> None:
    python(tmp_path / "bin", "3.12")
    pyenv = tmp_path / ".pyenv" / "versions" / "3.14.2" / "bin"
    pyenv.mkdir(parents=True)
    shutil.copy(python(tmp_path / "other", "3.14"), pyenv / "python")
    finished = run_script(script, path=str(tmp_path / "bin"))
    assert finished.returncode == 0, finished
    assert summary(finished) == [["3.12", "passed"], ["3.14", "passed"]]
    assert "3 passed, 1 skipped" in finished.stdout
    assert "pytest was given: -n auto" in (tmp_path / "test_results_3_12.log").read_text()
    assert (tmp_path / "test_results_3_14.log").is_file()


def test_a_failing_python_fails_the_run_but_the_others_are_tested(script: Path, tmp_path: Path) -> None:
    bad = python(tmp_path / "bin", "3.12", "1 failed, 2 passed", code=1)
    good = python(tmp_path / "bin", "3.13")
    finished = run_script(script, bad, good, "--", "-n", "2", "-k", "rm and not push")
    assert finished.returncode == 1
    assert summary(finished) == [["3.12", "FAILED"], ["3.13", "passed"]]
    assert "1 failed, 2 passed" in finished.stdout
    assert "given: -n 2 -k rm and not push" in (tmp_path / "test_results_3_13.log").read_text()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "none of Python 3.11 3.12 3.13 3.14 was found"),
        (("3.13",), "no Python 3.13 was found"),
        (("/nowhere/python3.12",), "no Python /nowhere/python3.12 was found"),
    ],
)
def test_a_missing_python_is_an_error(script: Path, words: tuple[str, ...], complaint: str) -> None:
    finished = run_script(script, *words)
    assert finished.returncode == 1
    assert complaint in finished.stderr
