"""The command line of `push`: wrong usage, wrong arguments, and the type of each error."""

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
    """Return a folder to push in the current folder, with alpha features on."""
    monkeypatch.setenv(ALPHA_VARIABLE, "1")
    monkeypatch.chdir(tmp_path)
    folder = Path(FOLDER)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("words", [("push",), ("push", FOLDER), (*GATE, "more"), (*GATE, "--branch"), (*GATE, "--no")])
@pytest.mark.usefixtures("alpha")
def test_wrong_usage_gives_an_error_envelope(mlxk2: Program, words: tuple[str, ...]) -> None:
    result = mlxk2(*words, "--json")
    assert (result.code, result.err) == (2, "")
    assert_push_document(result.json, "error")
    assert result.json["error"]["type"] == "CommandError"


@pytest.mark.parametrize("words", [(), ("--create",), ("--verbose", "--branch", "dev"), ("--commit", "message")])
@pytest.mark.usefixtures("alpha")
def test_push_without_private_is_refused(mlxk2: Program, words: tuple[str, ...]) -> None:
    result = mlxk2(*GATE, *words, "--json")
    assert result.code == 2
    assert_push_document(result.json, "error")
    assert result.json["error"]["type"] == "CommandError"
    assert "--private" in result.json["error"]["message"]


@pytest.mark.parametrize("mode", ["--private", "--dry-run"])
@pytest.mark.usefixtures("alpha")
def test_exit_code_is_refused_without_check_only(mlxk2: Program, mode: str) -> None:
    result = mlxk2(*GATE, mode, "--exit-code", "--json")
    assert (result.code, result.json["error"]["type"]) == (2, "CommandError")
    assert "--check-only" in result.json["error"]["message"]


@pytest.mark.usefixtures("alpha")
def test_private_is_required_before_the_folder_is_checked(mlxk2: Program) -> None:
    assert mlxk2("push", "./nowhere", MODEL, "--json").json["error"]["type"] == "CommandError"


@pytest.mark.usefixtures("alpha")
def test_check_only_works_without_private(mlxk2: Program) -> None:
    assert mlxk2(*GATE, "--check-only", "--json").code == 0
    assert mlxk2(*GATE, "--check-only", "--dry-run", "--json").code == 0


@pytest.mark.parametrize(
    "repo", ["", "model", "org/", "/model", "org/m/more", "org/../m", "org/model@dev", "o\\m/x", "org/" + "m" * 96]
)
@pytest.mark.usefixtures("alpha")
def test_an_invalid_repo_name_is_refused(mlxk2: Program, repo: str) -> None:
    result = mlxk2("push", FOLDER, repo, "--check-only", "--json")
    assert (result.code, result.json["error"]["type"]) == (1, "ValidationError")
    assert_push_document(result.json, "error")


@pytest.mark.parametrize("words", [("--branch", ""), ("--branch", "a..b"), ("--branch", "a\nb"), ("--commit", " ")])
@pytest.mark.usefixtures("alpha")
def test_an_invalid_branch_or_message_is_refused(mlxk2: Program, words: tuple[str, str]) -> None:
    result = mlxk2(*GATE, "--private", *words, "--json")
    assert (result.code, result.json["error"]["type"]) == (1, "ValidationError")


@pytest.mark.parametrize("mode", ["--check-only", "--dry-run", "--private"])
def test_a_missing_folder_is_an_error(mlxk2: Program, alpha: Path, mode: str) -> None:
    for name in ("./nowhere", str(alpha / "config.json"), ""):
        result = mlxk2("push", name, MODEL, mode, "--json")
        assert (result.code, result.json["error"]["type"]) == (1, "workspace_not_found")
        assert_push_document(result.json, "error")


@pytest.mark.usefixtures("alpha")
def test_plain_output_is_one_line(mlxk2: Program) -> None:
    result = mlxk2("push", "./nowhere", MODEL, "--private")
    assert (result.code, result.out, result.err) == (1, "", "Error: The folder './nowhere' does not exist.\n")


# --------------------------------------------------------------------------------------------------------------- tokens


def test_without_a_token_the_hub_is_not_contacted(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    error = push_error(pusher.spawn("--dry-run", "--json", HF_TOKEN=""))
    assert error["type"] == "auth_error"
    assert "HF_TOKEN" in error["message"]
    assert pusher.server.log.requests == []


def test_the_token_of_a_login_is_used(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    pusher.add({"a": b"1"})
    pusher.client.home.mkdir()
    (pusher.client.home / "token").write_text(pusher.token)
    assert push_data(pusher.spawn("--dry-run", "--json", HF_TOKEN=""))["no_changes"]
    assert {request.token for request in pusher.server.log.requests} == {pusher.token}


def test_an_unknown_token_is_an_auth_error(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    pusher.add({})
    assert pusher.error("--private", HF_TOKEN="hf_wrong")["type"] == "auth_error"


def test_a_read_only_token_cannot_upload(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    pusher.server.add(MODEL, {"b": b"2"})
    error = pusher.error("--private", HF_TOKEN=pusher.server.token("stranger"))
    assert error["type"] == "upload_failed"
    assert "rights" in error["message"]
    assert pusher.remote_files() == {"b": b"2"}


# --------------------------------------------------------------------------------------------------------- other errors


def test_a_missing_client_library_is_an_error_except_for_check_only(pusher: Pusher, tmp_path: Path) -> None:
    package = tmp_path / "shadow" / "huggingface_hub"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ModuleNotFoundError('no', name='huggingface_hub')\n")
    pusher.write({"a": b"1"})
    shadow = str(package.parent)
    assert push_error(pusher.spawn("--private", "--json", PYTHONPATH=shadow))["type"] == "dependency_missing"
    assert "workspace_health" in push_data(pusher.spawn("--check-only", "--json", PYTHONPATH=shadow))


def test_a_missing_repo_is_an_error_that_suggests_create(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    error = pusher.error("--private")
    assert error["type"] == "repo_not_found"
    assert "--create" in error["hint"]
    assert pusher.server.hub.repos == {}


@pytest.mark.parametrize("status", [403, 404, 409, 412, 500])
def test_a_refused_commit_is_upload_failed(pusher: Pusher, status: int) -> None:
    pusher.write({"a": b"1"})
    pusher.add({"b": b"2"})
    pusher.server.faults.add(Fault("/commit/", "POST", status=status))
    assert pusher.error("--private")["type"] == "upload_failed"
    assert pusher.remote_files() == {"b": b"2"}


@pytest.mark.parametrize("settings", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}], ids=str)
def test_an_unreachable_hub_is_upload_failed(pusher: Pusher, settings: dict[str, str]) -> None:
    pusher.write({"a": b"1"})
    assert push_error(pusher.spawn("--private", "--json", **settings))["type"] == "upload_failed"


def test_a_malformed_response_to_the_commit_is_upload_failed(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    pusher.add({})
    pusher.server.faults.add(Fault("/commit/", "POST", status=200))
    assert pusher.error("--private")["type"] == "upload_failed"
