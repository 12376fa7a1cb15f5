"""Edge cases of names on the disk: odd folders, similar names, incomplete models."""

from __future__ import annotations

import pytest
from conftest import Program
from support.conformance import assert_envelope
from support.layouts import (
    COMMIT,
    OTHER_COMMIT,
    CacheDir,
    as_json,
    chat_model,
    gguf_model,
    sharded_model,
)


def health_of(mlxk2: Program, name: str) -> list[tuple[str, str]]:
    document = mlxk2("health", name, "--json").json
    assert_envelope(document, "health")
    data = document["data"]
    return [(entry["name"], entry["status"]) for entry in data["healthy"] + data["unhealthy"]]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("models--org--x---y", "org/x/-y"),
        ("models--org--a--b", "org/a/b"),
        ("models--single", "single"),
        ("models--org--with.dots_and-dashes", "org/with.dots_and-dashes"),
    ],
)
def test_a_model_in_an_odd_folder_is_found_by_its_shown_name(
    cache_dir: CacheDir, mlxk2: Program, folder: str, name: str
) -> None:
    sound = cache_dir.add("org/sound", chat_model())
    (cache_dir.path / folder / "snapshots").mkdir(parents=True)
    sound.rename(cache_dir.path / folder / "snapshots" / COMMIT)
    for path in (cache_dir.folder("org/sound") / "blobs").iterdir():
        target = cache_dir.path / folder / "blobs" / path.name
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    assert health_of(mlxk2, name) == [(name, "healthy")]


def test_an_exact_name_does_not_match_longer_names(cache_dir: CacheDir, mlxk2: Program) -> None:
    for name in ("org/model", "org/model-2", "my-org/model"):
        cache_dir.add(name, chat_model())
    assert health_of(mlxk2, "org/model") == [("org/model", "healthy")]
    assert mlxk2("health", "model-", "--json").json["data"]["summary"]["total"] == 1


def test_case_is_ignored_only_if_no_name_matches_exactly(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/Model", chat_model())
    cache_dir.add("org/model", chat_model())
    assert health_of(mlxk2, "org/model") == [("org/model", "healthy")]
    assert mlxk2("show", "ORG/MODEL", "--json").json["error"]["matches"] == ["org/Model", "org/model"]


def test_pattern_characters_are_literal(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/model", chat_model())
    for pattern in ("org*", "m.del", "[om]", "^org", "org/model?", "(", "%"):
        assert health_of(mlxk2, pattern) == []
        # Only `list` takes globs.
        assert mlxk2("list", pattern, "--json").json["data"]["count"] == (pattern == "org*")


def test_datasets_of_the_same_name_are_ignored(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/name", chat_model())
    (cache_dir.path / "datasets--org--name" / "snapshots" / COMMIT).mkdir(parents=True)
    assert health_of(mlxk2, "name") == [("org/name", "healthy")]


def test_demo_always_means_the_demo_model(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/demo", chat_model())
    assert mlxk2("show", "demo", "--json").json["data"]["model"]["name"] == "demo"
    assert mlxk2("show", "org/demo", "--json").json["data"]["model"]["name"] == "org/demo"
    assert mlxk2("list", "demo", "--json").json["data"]["count"] == 1


@pytest.mark.parametrize("command", ["show", "health", "run", "pull", "rm"])
def test_the_demo_has_no_revisions(cache_dir: CacheDir, mlxk2: Program, command: str) -> None:
    cache_dir.add("org/demo-2", chat_model())
    prompt = ["hello"] if command == "run" else []
    error = mlxk2(command, "demo@main", *prompt, "--json").json["error"]
    assert (error["type"], "has no revisions" in error["message"]) == ("ValidationError", True)


@pytest.mark.parametrize("made", [[], ["refs"], ["snapshots"], ["blobs"], ["refs", "blobs", "snapshots"]])
def test_an_incomplete_model_folder_is_unhealthy(cache_dir: CacheDir, mlxk2: Program, made: list[str]) -> None:
    for folder in ("", *made):
        (cache_dir.folder("org/half") / folder).mkdir(exist_ok=True)
    assert health_of(mlxk2, "org/half") == [("org/half", "unhealthy")]


def test_a_file_among_the_snapshots_is_ignored(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/model", chat_model())
    (cache_dir.folder("org/model") / "snapshots" / ".DS_Store").write_bytes(b"\0")
    (cache_dir.folder("org/model") / "refs" / "main").unlink()
    assert mlxk2("show", "org/model", "--json").json["data"]["model"]["hash"] == COMMIT


def test_a_snapshot_not_named_after_a_commit_has_no_hash(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/model", chat_model(), commit="local-copy", ref=None)
    model = mlxk2("show", "org/model", "--json").json["data"]["model"]
    assert (model["hash"], model["health"]) == (None, "healthy")
    assert health_of(mlxk2, "org/model@local-copy") == [("org/model", "healthy")]


def test_a_damaged_new_revision_does_not_affect_the_old_one(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/model", sharded_model(), OTHER_COMMIT)
    cache_dir.add("org/model", chat_model() | {"config.json": b"{"}, COMMIT)
    assert health_of(mlxk2, "org/model") == [("org/model", "unhealthy")]
    assert health_of(mlxk2, f"org/model@{OTHER_COMMIT[:8]}") == [("org/model", "healthy")]


def test_the_framework_may_differ_between_revisions(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/model", gguf_model(), OTHER_COMMIT)
    cache_dir.add("org/model", chat_model() | {"config.json": as_json({"model_type": "llama"})}, COMMIT)
    shown = [mlxk2("show", f"org/model@{c}", "--json").json["data"]["model"] for c in (COMMIT, OTHER_COMMIT)]
    assert [model["framework"] for model in shown] == ["MLX", "GGUF"]
