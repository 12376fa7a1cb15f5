"""Fixtures for tests of the real program on terminals and pipes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture
def environment(isolated_cache: Path, tmp_path: Path) -> dict[str, str]:  # noqa: ARG001 - isolates
    """Return the variables of a shell whose user sees only the isolated cache."""
    home = tmp_path / "home"
    home.mkdir()
    names = (
        "HF_HOME",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "XDG_CACHE_HOME",
        "MLXK2_STRICT_TEST_DELETE",
        "PYTHONPATH",
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cache = {name: os.environ[name] for name in names}
    return cache | {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "TERM": "xterm"}
