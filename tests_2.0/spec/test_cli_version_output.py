"""`--version`, for people and for programs."""

from __future__ import annotations

from importlib.metadata import entry_points, version

import pytest
from conftest import Program

from mlxk2.spec import JSON_API_SPEC_VERSION

pytestmark = pytest.mark.spec


@pytest.mark.parametrize("words", [("--version", "--json"), ("--json", "--version")])
def test_json_has_exactly_both_versions(mlxk2: Program, words: tuple[str, ...]) -> None:
    result = mlxk2(*words)
    assert (result.code, result.err) == (0, "")
    assert result.json == {
        "status": "success",
        "command": "version",
        "data": {"cli_version": version("mlxk2"), "json_api_spec_version": JSON_API_SPEC_VERSION},
        "error": None,
    }


def test_plain_output_is_one_line(mlxk2: Program) -> None:
    assert mlxk2("--version") == (0, f"mlxk2 {version('mlxk2')}\n", "")


def test_both_names_are_the_same_program() -> None:
    (first,), (second,) = (entry_points(group="console_scripts", name=name) for name in ("mlxk2", "mlxk-json"))
    assert first.value == second.value
    assert first.load() is second.load()
