"""The command line of `push`: what is wrong usage, what is a wrong argument, and what each error is called."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Program
from support.hub import Fault
from support.pushing import FOLDER, MODEL, Pusher, assert_push_document, push_data, push_error

from mlxk2.cli.parser import ALPHA_VARIABLE

GATE = ("push", FOLDER, MODEL)


@pytest.fixture
def alpha(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to push in the current one, with alpha features on."""
    monkeypatch.setenv(ALPHA_VARIABLE, "1")
    monkeypatch.chdir(tmp_path)
    folder = Path(FOLDER)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("words", [("push",), ("push", FOLDER), (*GATE, "more"), (*GATE, "--branch"), (*GATE, "--no")])
@pytest.mark.usefixtures("alpha")
def test_wrong_usage_is_an_envelope(mlxk2: Program, words: tuple[str, ...]) -> None:
    result = mlxk2(*words, "--json")
    assert (result.code, result.err) == (2, "")
    assert_push_document(result.json, "error")
    assert result.json["error"]["type"] == "CommandError"


@pytest.mark.parametrize("words", [(), ("--create",), ("--verbose", "--branch", "dev"), ("--commit", "message")])
@pytest.mark.usefixtures("alpha")
def test_nothing_is_uploaded_without_the_gate(mlxk2: Program, words: tuple[str, ...]) -> None:
    result = mlxk2(*GATE, *words, "--json")
    assert result.code == 2
    assert_push_document(result.json, "error")
    assert result.json["error"]["type"] == "CommandError"
    assert "--private" in result.json["error"]["message"]


@pytest.mark.usefixtures("alpha")
def test_the_gate_comes_before_the_folder(mlxk2: Program) -> None:
    assert mlxk2("push", "./nowhere", MODEL, "--json").json["error"]["type"] == "CommandError"


@pytest.mark.usefixtures("alpha")
def test_a_check_needs_no_gate(mlxk2: Program) -> None:
    assert mlxk2(*GATE, "--check-only", "--json").code == 0
    assert mlxk2(*GATE, "--check-only", "--dry-run", "--json").code == 0


@pytest.mark.parametrize(
    "repo", ["", "model", "org/", "/model", "org/m/more", "org/../m", "org/model@dev", "o\\m/x", "org/" + "m" * 96]
)
@pytest.mark.usefixtures("alpha")
def test_a_repo_that_can_not_be(mlxk2: Program, repo: str) -> None:
    result = mlxk2("push", FOLDER, repo, "--check-only", "--json")
    assert (result.code, result.json["error"]["type"]) == (1, "ValidationError")
    assert_push_document(result.json, "error")


@pytest.mark.parametrize("words", [("--branch", ""), ("--branch", "a..b"), ("--branch", "a\nb"), ("--commit", " ")])
@pytest.mark.usefixtures("alpha")
def test_a_branch_or_a_message_that_can_not_be(mlxk2: Program, words: tuple[str, str]) -> None:
    result = mlxk2(*GATE, "--private", *words, "--json")
    assert (result.code, result.json["error"]["type"]) == (1, "ValidationError")


@pytest.mark.parametrize("mode", ["--check-only", "--dry-run", "--private"])
def test_a_missing_folder(mlxk2: Program, alpha: Path, mode: str) -> None:
    for name in ("./nowhere", str(alpha / "config.json"), ""):
        result = mlxk2("push", name, MODEL, mode, "--json")
        assert (result.code, result.json["error"]["type"]) == (1, "workspace_not_found")
        assert_push_document(result.json, "error")


@pytest.mark.usefixtures("alpha")
def test_people_see_one_line(mlxk2: Program) -> None:
    result = mlxk2("push", "./nowhere", MODEL, "--private")
    assert (result.code, result.out, result.err) == (1, "", "Error: The folder './nowhere' does not exist.\n")


# --------------------------------------------------------------------------------------------------------------- tokens


def test_without_a_token_nothing_is_asked(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    error = push_error(pusher.spawn("--dry-run", "--json", HF_TOKEN=""))
    assert error["type"] == "auth_error"
    assert "HF_TOKEN" in error["message"]
    assert pusher.server.log.requests == []


def test_the_token_of_a_login_counts(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    pusher.add({"a": b"1"})
    pusher.client.home.mkdir()
    (pusher.client.home / "token").write_text(pusher.token)
    assert push_data(pusher.spawn("--dry-run", "--json", HF_TOKEN=""))["no_changes"]
    assert {request.token for request in pusher.server.log.requests} == {pusher.token}


def test_a_token_that_the_hub_does_not_know(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    pusher.add({})
    assert pusher.error("--private", HF_TOKEN="hf_wrong")["type"] == "auth_error"


def test_a_token_that_may_only_read(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    pusher.server.add(MODEL, {"b": b"2"})
    error = pusher.error("--private", HF_TOKEN=pusher.server.token("stranger"))
    assert error["type"] == "upload_failed"
    assert "rights" in error["message"]
    assert pusher.remote_files() == {"b": b"2"}


# --------------------------------------------------------------------------------------------------------- other errors


def test_without_the_client_library(pusher: Pusher, tmp_path: Path) -> None:
    package = tmp_path / "shadow" / "huggingface_hub"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ModuleNotFoundError('no', name='huggingface_hub')\n")
    pusher.write({"a": b"1"})
    shadow = str(package.parent)
    assert push_error(pusher.spawn("--private", "--json", PYTHONPATH=shadow))["type"] == "dependency_missing"
    assert "workspace_health" in push_data(pusher.spawn("--check-only", "--json", PYTHONPATH=shadow))


def test_a_repo_that_is_not_there(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    error = pusher.error("--private")
    assert error["type"] == "repo_not_found"
    assert "--create" in error["hint"]
    assert pusher.server.hub.repos == {}


@pytest.mark.parametrize("status", [403, 404, 409, 412, 500])
def test_a_commit_that_the_hub_refuses(pusher: Pusher, status: int) -> None:
    pusher.write({"a": b"1"})
    pusher.add({"b": b"2"})
    pusher.server.faults.add(Fault("/commit/", "POST", status=status))
    assert pusher.error("--private")["type"] == "upload_failed"
    assert pusher.remote_files() == {"b": b"2"}


@pytest.mark.parametrize("settings", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}], ids=str)
def test_a_hub_out_of_reach(pusher: Pusher, settings: dict[str, str]) -> None:
    pusher.write({"a": b"1"})
    assert push_error(pusher.spawn("--private", "--json", **settings))["type"] == "upload_failed"


def test_an_answer_that_makes_no_sense(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    pusher.add({})
    pusher.server.faults.add(Fault("/commit/", "POST", status=200))
    assert pusher.error("--private")["type"] == "upload_failed"
