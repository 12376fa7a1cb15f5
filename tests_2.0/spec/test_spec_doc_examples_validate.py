"""Every example of the specification conforms to the schema and to what scripts for the API 0.1.5 expect."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from support.previous_api import is_as_before

from mlxk2.spec import DATA_OF_COMMAND

pytestmark = pytest.mark.spec


def test_each_example_conforms_to_the_schema(example: dict[str, Any], problems: Callable[[object], list[str]]) -> None:
    assert problems(example) == []
    assert is_as_before(example)


def test_the_counts_of_each_example_are_right(example: dict[str, Any]) -> None:
    data = example["data"] or {}
    if example["command"] == "list":
        assert data["count"] == len(data["models"])
    if "summary" in data:
        counts = (len(data["healthy"]), len(data["unhealthy"]))
        assert (data["summary"]["healthy_count"], data["summary"]["unhealthy_count"]) == counts
        assert data["summary"]["total"] == sum(counts)
    if data.get("change_summary", {}).get("modified") is None and "change_summary" in data:
        assert not data["no_changes"]


def test_each_command_has_an_example_of_success(examples: list[dict[str, Any]]) -> None:
    succeeded = {example["command"] for example in examples if example["status"] == "success"}
    assert succeeded == set(DATA_OF_COMMAND)


def test_every_json_block_is_an_example(specification: str, examples: list[dict[str, Any]]) -> None:
    assert len(re.findall(r"^\s*```json", specification, re.MULTILINE)) == len(examples)
