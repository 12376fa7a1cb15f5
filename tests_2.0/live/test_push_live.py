"""`push` to the real hub: what is on disk arrives, and a second push finds nothing to do.

Needs MLXK2_ENABLE_ALPHA_FEATURES=1, MLXK2_LIVE_PUSH=1, HF_TOKEN (with write access), MLXK2_LIVE_REPO (org/model, which
must exist: nothing is created here) and MLXK2_LIVE_WORKSPACE (a folder; the repo becomes a mirror of it).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from support.pushing import assert_push_document

pytestmark = [pytest.mark.wet, pytest.mark.live_push]

LIMIT_SECONDS = 1800


def push(*words: str) -> dict[str, Any]:
    """Push and return the data; if the hub refuses, skip the test with its message."""
    command = [sys.executable, "-m", "mlxk2", "push", os.environ["MLXK2_LIVE_WORKSPACE"], os.environ["MLXK2_LIVE_REPO"]]
    finished = subprocess.run([*command, *words, "--json"], capture_output=True, text=True, timeout=LIMIT_SECONDS)
    document = json.loads(finished.stdout)
    assert_push_document(document, document["status"])
    if document["status"] == "error":
        pytest.skip(f"{document['error']['type']}: {document['error']['message']}")
    data: dict[str, Any] = document["data"]
    return data


@pytest.mark.timeout(2 * LIMIT_SECONDS)
def test_a_second_push_has_no_changes() -> None:
    planned = push("--dry-run")
    pushed = push("--private")
    assert pushed["no_changes"] == planned["no_changes"]
    if not pushed["no_changes"]:
        assert pushed["change_summary"] == planned["dry_run_summary"]
        assert pushed["commit_url"].endswith(pushed["commit_sha"])
    again = push("--private")
    assert (again["no_changes"], again["commit_sha"], again["uploaded_files_count"]) == (True, None, 0)


def test_the_workspace_is_healthy() -> None:
    assert push("--check-only")["workspace_health"]["healthy"]
