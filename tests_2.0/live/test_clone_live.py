"""`clone` of a real model from the real hub, into a folder on the disk of MLXK2_LIVE_CLONE_WORKSPACE."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
from conftest import Program
from support.conformance import data_of, error_of

pytestmark = [pytest.mark.wet, pytest.mark.live_clone]


@pytest.fixture
def workspace() -> Iterator[Path]:
    """Yield a new folder in the workspace and remove it afterwards."""
    folder = Path(mkdtemp(prefix="mlxk2-live-", dir=os.environ["MLXK2_LIVE_CLONE_WORKSPACE"]))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def model() -> str:
    """Return the name of the model to clone, a small one."""
    return os.environ["MLXK2_LIVE_CLONE_MODEL"]


def test_a_model_can_be_cloned_from_the_hub(mlxk2: Program, isolated_cache: Path, workspace: Path, model: str) -> None:
    data = data_of(mlxk2("clone", model, str(workspace / "clone"), "--json"), "clone")
    assert data["clone_status"] == "success"
    if sys.platform == "darwin":
        assert data["method"] == "apfs_clonefile"
    assert [path.name for path in workspace.iterdir()] == ["clone"]
    assert not any(path.name.startswith("models--") for path in isolated_cache.iterdir())
    shown = data_of(mlxk2("show", str(workspace / "clone"), "--json"), "show")["model"]
    assert shown["health"] == "healthy"


def test_a_pulled_model_can_be_cloned(mlxk2: Program, workspace: Path, model: str) -> None:
    data_of(mlxk2("pull", model, "--json"), "pull")
    data_of(mlxk2("clone", model, str(workspace / "clone"), "--json"), "clone")
    assert data_of(mlxk2("health", "--deep", "--json"), "health")["summary"]["healthy_count"] == 1


def test_cloning_a_missing_model_is_access_denied(mlxk2: Program, workspace: Path, model: str) -> None:
    error = error_of(mlxk2("clone", f"{model}-that-is-not-there", str(workspace / "clone"), "--json"), "clone")
    assert error["data"]["clone_status"] == "access_denied"
    assert list(workspace.iterdir()) == []
