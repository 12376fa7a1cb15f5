"""The life of a model from end to end: pulled, run, cloned, edited, pushed, pulled elsewhere, removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from support.conformance import SCHEMA, assert_envelope
from support.hub import HubServer
from support.hub.fixtures import Client
from support.previous_api import is_as_before
from support.tiny_models import say, write_chain

pytestmark = pytest.mark.e2e

ORIGINAL, PUSHED = "maker/tiny-chat", "user/my-chat"
ANSWER = ("H", "e", "l", "o")

Mlxk2 = Callable[..., dict[str, Any]]


@pytest.fixture
def model(hub_server: HubServer, tmp_path: Path) -> dict[str, bytes]:
    """Add a real model to the hub that writes a known text; return its files."""
    folder = write_chain(tmp_path / "model", say(*ANSWER))
    (folder / "README.md").write_text("---\ntags: [mlx]\n---\n# Tiny\n")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub_server.add(ORIGINAL, files, is_xet=True)
    return files


@pytest.fixture
def user(hub_server: HubServer, hub_client: Client) -> Mlxk2:
    """Return a function that runs a command as the owner of the pushed model, in either cache, and returns its data."""
    validator = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    token = hub_server.token("user")

    def run(command: str, *words: str, client: Client = hub_client) -> dict[str, Any]:
        outcome = client.run(command, *words, "--json", HF_TOKEN=token)
        assert (outcome.code, outcome.err) == (0, ""), outcome
        assert [error.message for error in validator.iter_errors(outcome.json)] == []
        assert_envelope(outcome.json, command)
        assert is_as_before(outcome.json)
        data: dict[str, Any] = outcome.json["data"]
        return data

    return run


def test_a_model_is_pulled_run_cloned_pushed_and_removed(
    user: Mlxk2, hub_server: HubServer, model: dict[str, bytes], tmp_path: Path
) -> None:
    elsewhere = Client(hub_server, tmp_path / "elsewhere")
    copy = tmp_path / "copy"

    pulled = user("pull", ORIGINAL)
    assert pulled["download_status"] == "success"

    (listed,) = user("list")["models"]
    assert (listed["name"], listed["hash"]) == (ORIGINAL, pulled["commit_hash"])
    assert (listed["health"], listed["runtime_compatible"], listed["model_type"]) == ("healthy", True, "chat")

    question = ("Hello", "--temperature", "0", "--max-tokens", "8", "--repetition-penalty", "1")
    answer = user("run", "tiny-chat", *question)
    assert (answer["response"], answer["finish_reason"]) == ("".join(ANSWER), "stop")

    cloned = user("clone", ORIGINAL, str(copy))
    assert cloned["clone_status"] == "success"
    assert {str(path.relative_to(copy)): path.read_bytes() for path in copy.rglob("*") if path.is_file()} == model
    assert user("run", str(copy), *question)["response"] == answer["response"]

    (copy / "README.md").write_text("---\ntags: [mlx]\n---\n# Mine\n")
    (copy / "notes.txt").write_text("edited")
    (copy / ".DS_Store").write_text("stays at home")
    assert user("push", str(copy), PUSHED, "--check-only")["workspace_health"]["healthy"]
    planned = user("push", str(copy), PUSHED, "--dry-run")
    assert (planned["would_create_repo"], planned["dry_run_summary"]["added"]) == (True, len(model) + 1)

    pushed = user("push", str(copy), PUSHED, "--private", "--create")
    assert (pushed["created_repo"], pushed["uploaded_files_count"]) == (True, len(model) + 1)
    assert hub_server.hub.repos[PUSHED].branches["main"] == pushed["commit_sha"]

    again = user("push", str(copy), PUSHED, "--private")
    assert (again["no_changes"], again["commit_sha"]) == (True, None)

    received = user("pull", PUSHED, client=elsewhere)
    assert received["commit_hash"] == pushed["commit_sha"]
    assert user("health", PUSHED, client=elsewhere)["summary"] == {"total": 1, "healthy_count": 1, "unhealthy_count": 0}
    assert user("run", PUSHED, *question, client=elsewhere)["response"] == answer["response"]
    snapshot = elsewhere.cache_dir / "models--user--my-chat" / "snapshots" / pushed["commit_sha"]
    assert (snapshot / "notes.txt").read_text() == "edited"
    assert not (snapshot / ".DS_Store").exists()

    removed = user("rm", PUSHED, client=elsewhere)
    assert removed["action"] == "deleted"
    assert removed["freed_bytes"] > 0
    assert user("list", client=elsewhere)["count"] == 0
    assert user("list")["count"] == 1
    assert user("rm", ORIGINAL)["action"] == "deleted"
    assert user("run", str(copy), *question)["response"] == answer["response"]
