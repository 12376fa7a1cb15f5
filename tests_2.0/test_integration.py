"""From a name to a verdict: the model and the revision that an argument means, on all layouts of a cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Program, Result
from huggingface_hub import scan_cache_dir
from support.layouts import (
    COMMIT,
    LAYOUTS,
    OTHER_COMMIT,
    CacheDir,
    Layout,
    base_model,
    chat_model,
    gguf_model,
    sharded_model,
)


def names(result: Result) -> list[str]:
    return [model["name"] for model in result.json["data"]["models"]]


def shown(result: Result) -> dict[str, Any]:
    assert result.code == 0, result
    model: dict[str, Any] = result.json["data"]["model"]
    return model


@pytest.fixture
def filled(cache_dir: CacheDir) -> CacheDir:
    """Return a cache of models whose names have parts in common."""
    for name in ("mlx-community/Phi-3", "other/Phi-3", "mlx-community/Qwen3-0.6B", "gpt2", "org/Mistral"):
        cache_dir.add(name, chat_model())
    return cache_dir


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("mlx-community/Phi-3", "mlx-community/Phi-3"),
        ("Phi-3", "mlx-community/Phi-3"),
        ("other/Phi-3", "other/Phi-3"),
        ("gpt2", "gpt2"),
        ("GPT", "gpt2"),
        ("qwen3", "mlx-community/Qwen3-0.6B"),
        ("ORG/mist", "org/Mistral"),
        ("0.6B", "mlx-community/Qwen3-0.6B"),
    ],
)
@pytest.mark.usefixtures("filled")
def test_a_full_or_partial_name_finds_its_model(mlxk2: Program, argument: str, name: str) -> None:
    assert shown(mlxk2("show", argument, "--json"))["name"] == name


@pytest.mark.parametrize("command", ["show", "health"])
@pytest.mark.usefixtures("filled")
def test_an_ambiguous_name_is_an_error_with_all_matches(mlxk2: Program, command: str) -> None:
    result = mlxk2(command, "phi", "--json")
    assert result.code == 1
    assert result.json["error"]["type"] == "ambiguous_match"
    assert result.json["error"]["matches"] == ["mlx-community/Phi-3", "other/Phi-3"]


@pytest.mark.usefixtures("filled")
def test_an_ambiguous_name_prints_the_matches(mlxk2: Program) -> None:
    result = mlxk2("show", "phi")
    assert result.out == ""
    assert "  mlx-community/Phi-3\n  other/Phi-3\n" in result.err


@pytest.mark.usefixtures("filled")
def test_show_of_an_unknown_name_is_model_not_found(mlxk2: Program) -> None:
    result = mlxk2("show", "nowhere", "--json")
    assert (result.code, result.json["error"]["type"]) == (1, "model_not_found")
    assert "mlxk2 pull mlx-community/nowhere" in result.json["error"]["message"]


@pytest.mark.usefixtures("filled")
def test_health_of_an_unknown_name_is_an_empty_success(mlxk2: Program) -> None:
    result = mlxk2("health", "nowhere", "--json")
    assert result.code == 0
    assert result.json["data"] == {
        "healthy": [],
        "unhealthy": [],
        "summary": {"total": 0, "healthy_count": 0, "unhealthy_count": 0},
    }


@pytest.mark.usefixtures("filled")
def test_list_takes_a_pattern_in_any_case(mlxk2: Program) -> None:
    assert names(mlxk2("list", "PHI", "--json")) == ["mlx-community/Phi-3", "other/Phi-3"]


# ----------------------------------------------------------------------------------------------------------- revisions


@pytest.fixture
def two_revisions(cache_dir: CacheDir) -> Path:
    """Add a model at two commits, with `main` at the older one; return its folder."""
    old = cache_dir.add("org/model", chat_model(), COMMIT)
    new = cache_dir.add("org/model", sharded_model(), OTHER_COMMIT, ref=None)
    os.utime(old, (1_000_000_000, 1_000_000_000))
    os.utime(new, (1_100_000_000, 1_100_000_000))
    return cache_dir.folder("org/model")


@pytest.mark.usefixtures("two_revisions")
def test_the_snapshot_of_main_is_chosen(mlxk2: Program) -> None:
    model = shown(mlxk2("show", "org/model", "--json"))
    assert (model["hash"], model["last_modified"]) == (COMMIT, "2001-09-09T01:46:40Z")


@pytest.mark.parametrize("main", [None, b"", b"\xff\xfe", b"../../../etc", b"f" * 40, b"x" * 5000])
def test_without_a_usable_main_the_newest_snapshot_is_chosen(
    two_revisions: Path, mlxk2: Program, main: bytes | None
) -> None:
    ref = two_revisions / "refs" / "main"
    ref.unlink() if main is None else ref.write_bytes(main)
    assert shown(mlxk2("show", "org/model", "--json"))["hash"] == OTHER_COMMIT


@pytest.mark.parametrize(
    ("revision", "commit"),
    [
        (COMMIT, COMMIT),
        (OTHER_COMMIT, OTHER_COMMIT),
        (OTHER_COMMIT[:3], OTHER_COMMIT),
        (COMMIT[:12], COMMIT),
        ("main", COMMIT),
        ("refs/pr", OTHER_COMMIT),
    ],
)
def test_a_revision_can_be_a_commit_prefix_or_a_ref(
    two_revisions: Path, mlxk2: Program, revision: str, commit: str
) -> None:
    (two_revisions / "refs" / "refs").mkdir()
    (two_revisions / "refs" / "refs" / "pr").write_text(OTHER_COMMIT)
    assert shown(mlxk2("show", f"model@{revision}", "--json"))["hash"] == commit
    health = mlxk2("health", f"org/model@{revision}", "--json").json["data"]
    assert health["summary"]["total"] == 1


@pytest.mark.parametrize("revision", ["ab", "0", "fff", "develop", COMMIT[:-1] + "9"])
@pytest.mark.usefixtures("two_revisions")
def test_an_unknown_revision_is_an_error_with_the_available_ones(mlxk2: Program, revision: str) -> None:
    result = mlxk2("show", f"org/model@{revision}", "--json")
    assert (result.code, result.json["error"]["type"]) == (1, "hash_not_found")
    assert sorted(result.json["error"]["available_hashes"]) == [COMMIT, OTHER_COMMIT]
    assert result.json["error"]["hint"] == f"If the hub has it: mlxk2 pull org/model@{revision}"


@pytest.mark.parametrize(("word", "full"), [("org/new", "org/new"), ("new", "mlx-community/new")])
@pytest.mark.parametrize("revision", ["", "@dev", "@0123abc"])
def test_a_missing_model_is_an_error_with_the_pull_command(mlxk2: Program, word: str, full: str, revision: str) -> None:
    error = mlxk2("show", word + revision, "--json").json["error"]
    assert (error["type"], error["message"].rpartition("download it: ")[2]) == (
        "model_not_found",
        f"mlxk2 pull {full}{revision}",
    )


def test_a_prefix_of_two_commits_is_ambiguous(cache_dir: CacheDir, mlxk2: Program) -> None:
    commits = ["abc" + "0" * 37, "abc" + "1" * 37]
    for commit in commits:
        cache_dir.add("org/model", chat_model(), commit)
    result = mlxk2("show", "org/model@abc", "--json")
    assert result.json["error"]["type"] == "ambiguous_match"
    assert result.json["error"]["matches"] == [f"org/model@{commit}" for commit in commits]


# --------------------------------------------------------------------------------------------- which folders are models


def test_only_models_are_listed(filled: CacheDir, mlxk2: Program) -> None:
    for folder in ("datasets--org--data", "spaces--org--space", "blobs/ab", "models", ".locks/models--org--locked"):
        (filled.path / folder).mkdir(parents=True)
    (filled.path / "models--org--file").touch()
    (filled.path / "version.txt").write_text("1")
    assert len(names(mlxk2("list", "--json"))) == 5
    assert mlxk2("health", "--json").json["data"]["summary"]["total"] == 5


def test_a_missing_cache_counts_as_empty(mlxk2: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "nowhere"))
    assert mlxk2("list", "--json").json["data"] == {"models": [], "count": 0}
    assert mlxk2("health").out == "No models found.\n"


def test_the_demo_is_not_part_of_list_and_health(filled: CacheDir, mlxk2: Program) -> None:
    filled.add("org/demo-model", chat_model())
    assert mlxk2("health", "demo", "--json").json["data"]["summary"]["total"] == 0
    assert shown(mlxk2("show", "demo", "--json"))["name"] == "demo"


# -------------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layouts_of_the_tests_are_those_of_huggingface_hub(isolated_cache: Path, layout: Layout) -> None:
    cache_dir = CacheDir(isolated_cache, layout)
    cache_dir.add("org/chat", chat_model())
    cache_dir.add("org/sharded", sharded_model())
    found = scan_cache_dir(isolated_cache)
    assert not [str(warning) for warning in found.warnings if "TEST_SENTINEL" not in str(warning)]
    assert {repo.repo_id for repo in found.repos} == {"org/chat", "org/sharded"}
    assert all(revision.refs == {"main"} for repo in found.repos for revision in repo.revisions)
    assert (isolated_cache / "blobs" / ".huggingface-shared-blobs").exists() == (layout == "shared")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_is_described_the_same_on_every_layout(isolated_cache: Path, mlxk2: Program, layout: Layout) -> None:
    CacheDir(isolated_cache, layout).add("org/chat", files := chat_model())
    model = shown(mlxk2("show", "org/chat", "--json"))
    assert model["size_bytes"] == sum(map(len, files.values()))
    assert (model["framework"], model["model_type"], model["health"]) == ("MLX", "chat", "healthy")


@pytest.mark.parametrize("layout", ["links", "shared"])
def test_a_blob_that_two_files_share_counts_once(isolated_cache: Path, mlxk2: Program, layout: Layout) -> None:
    files = gguf_model("a.gguf", "b.gguf")
    CacheDir(isolated_cache, layout).add("org/twice", files)
    model = shown(mlxk2("show", "org/twice", "--json"))
    assert model["size_bytes"] == len(files["a.gguf"]) + len(files["README.md"])


def test_without_a_snapshot_the_size_is_that_of_the_folder(cache_dir: CacheDir, mlxk2: Program) -> None:
    blobs = cache_dir.folder("org/broken") / "blobs"
    blobs.mkdir(parents=True)
    (blobs / ("a" * 64 + ".1234abcd.incomplete")).write_bytes(bytes(5000))
    (cache_dir.folder("org/broken") / "refs").mkdir()
    (cache_dir.folder("org/broken") / "refs" / "main").write_text(COMMIT)
    model = shown(mlxk2("show", "org/broken", "--json"))
    assert (model["health"], model["hash"], model["size_bytes"]) == ("unhealthy", None, 5040)


def test_the_size_includes_the_bytes_of_an_interrupted_pull(
    cache_dir: CacheDir, mlxk2: Program, tmp_path: Path
) -> None:
    """The model's folder may be a link to another disk, where nothing else is counted."""
    real = tmp_path / "other-disk"
    waiting = real / ".incomplete" / "blobs"
    waiting.mkdir(parents=True)
    (waiting / ("a" * 64 + ".partial")).write_bytes(bytes(3000))
    (waiting / ("b" * 64)).write_bytes(bytes(2000))
    (tmp_path / "huge").write_bytes(bytes(9000))
    (waiting / ("c" * 64)).symlink_to(tmp_path / "huge")
    cache_dir.folder("org/link").symlink_to(real)
    shutil.copytree(real, cache_dir.folder("org/model"), symlinks=True)
    for name in ("org/link", "org/model"):
        assert shown(mlxk2("show", name, "--json"))["size_bytes"] == 5000


def test_a_model_folder_that_is_a_link_is_not_measured(cache_dir: CacheDir, mlxk2: Program, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "huge").write_bytes(bytes(4096))
    cache_dir.folder("org/link").symlink_to(tmp_path / "elsewhere")
    assert shown(mlxk2("show", "org/link", "--json"))["size_bytes"] == 0


# ------------------------------------------------------------------------------------------------------ system errors


class BrokenStream:
    """A standard input that can't be read."""

    def __init__(self, fault: OSError) -> None:
        self._fault = fault

    @staticmethod
    def fileno() -> int:
        return os.open(os.devnull, os.O_RDONLY)

    @staticmethod
    def isatty() -> bool:
        return False

    def read(self, _size: int = -1) -> str:
        raise self._fault


def test_a_broken_pipe_on_stdin_is_an_error(
    cache_dir: CacheDir, mlxk2: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_dir.add("org/model", chat_model())
    monkeypatch.setattr("sys.stdin", BrokenStream(BrokenPipeError(32, "Broken pipe")))
    result = mlxk2("run", "org/model", "-", "--json")
    assert (result.code, result.json["status"]) == (1, "error")
    assert "Broken pipe" in result.json["error"]["message"]


def test_a_system_error_names_the_file_without_its_path(
    cache_dir: CacheDir, mlxk2: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_dir.add("org/model", chat_model())
    for path in ("/home/me/secret/notes", b"/home/me/secret/notes", "/home/me/secret/notes/"):
        monkeypatch.setattr("sys.stdin", BrokenStream(PermissionError(13, "Permission denied", path)))
        result = mlxk2("run", "org/model", "-", "--json")
        assert result.json["error"]["message"] == "The operating system refused 'notes': Permission denied."
        assert "secret" not in result.out


# ------------------------------------------------------------------------------------------------------ folders by path


@pytest.mark.parametrize("form", ["{}", "./my-model", "../work/my-model", "./my-model/", "./my-model/."])
def test_a_folder_can_be_named_by_its_path(
    mlxk2: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    folder = tmp_path / "work" / "my-model"
    folder.mkdir(parents=True)
    for name, content in base_model().items():
        (folder / name).write_bytes(content)
    monkeypatch.chdir(folder.parent)
    model = shown(mlxk2("show", form.format(folder), "--json"))
    assert (model["name"], model["hash"], model["health"]) == ("my-model", None, "healthy")
    health = mlxk2("health", form.format(folder), "--json").json["data"]
    assert health["healthy"] == [{"name": "my-model", "status": "healthy", "reason": "Model is healthy"}]


@pytest.mark.parametrize("command", ["show", "health"])
@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "./file"])
def test_a_path_that_is_no_folder_is_model_not_found(
    mlxk2: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    result = mlxk2(command, path, "--json")
    assert (result.code, result.json["error"]["type"]) == (1, "model_not_found")
