"""Fixtures for tests of the JSON API: its schema, its documentation, and the real program."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jsonschema import Draft202012Validator
from support.layouts import CacheDir, chat_model, gguf_model, sharded_model, without

DOCS = Path(__file__).parents[2] / "docs"
SPECIFICATION = DOCS / "json-api-specification.md"
SCHEMA = DOCS / "json-api-schema.json"

_EXAMPLE = re.compile(r"^```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)

Document = dict[str, Any]


class Outcome(NamedTuple):
    """The exit code of the program and the one document that it printed."""

    code: int
    document: Document
    err: str


def read_examples() -> list[Document]:
    """Return every example of the specification."""
    return [json.loads(text) for text in _EXAMPLE.findall(SPECIFICATION.read_text(encoding="utf-8"))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with an argument `example` once for every example of the specification."""
    if "example" in metafunc.fixturenames:
        examples = read_examples()
        ids = [f"{number}-{example['command']}-{example['status']}" for number, example in enumerate(examples)]
        metafunc.parametrize("example", examples, ids=ids)


@pytest.fixture(scope="session")
def examples() -> list[Document]:
    """Return every example of the specification."""
    return read_examples()


@pytest.fixture(scope="session")
def specification() -> str:
    """Return the text of the specification."""
    return SPECIFICATION.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def schema() -> Document:
    """Return the published schema; fail if it is no valid schema."""
    published: Document = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(published)
    return published


@pytest.fixture(scope="session")
def problems(schema: Document) -> Callable[[object], list[str]]:
    """Return a function that lists every violation of the schema in a document."""
    validator = Draft202012Validator(schema)
    return lambda document: [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@pytest.fixture
def program(isolated_cache: Path, tmp_path: Path) -> Callable[..., Outcome]:  # noqa: ARG001 - isolates
    """Return a function that runs the real program with `--json` in a separate process and folder."""

    def run(*words: str, **environment: str) -> Outcome:
        command = [sys.executable, "-m", "mlxk2", *words, "--json"]
        finished = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True
        )
        return Outcome(finished.returncode, json.loads(finished.stdout), finished.stderr.decode())

    return run


@pytest.fixture
def filled(cache_dir: CacheDir) -> CacheDir:
    """Return a cache with models of all kinds, sound and damaged."""
    cache_dir.add("mlx-community/Sound-4bit", chat_model(quantization={"bits": 4, "group_size": 64}))
    cache_dir.add("mlx-community/Sharded-8bit", sharded_model())
    cache_dir.add("mlx-community/Sharded-broken", without(sharded_model(), "model-00002-of-00003.safetensors"))
    cache_dir.add("mlx-community/embed-small", chat_model(architectures=["BertModel"]))
    cache_dir.add("org/model-gguf", gguf_model())
    cache_dir.add("org/unknown-architecture", chat_model(model_type="unknown-type"))
    cache_dir.add("org/f\u00fcr-alle", chat_model())
    (cache_dir.path / "models--org--x---never").mkdir()
    return cache_dir
