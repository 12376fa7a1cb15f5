"""`clone`: a complete, editable folder or nothing at all; the cache is unchanged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Program
from support.conformance import data_of, error_of
from support.filesystems import mount, mount_tmpfs, read_tree
from support.layouts import COMMIT, LAYOUTS, OTHER_COMMIT, SENTINEL, CacheDir, Layout, sharded_model, without

NAME = "org/model"
MODEL = sharded_model() | {"sub/folder/notes.txt": b"notes", "twin.txt": b"same", "twin-2.txt": b"same"}
METHOD = "apfs_clonefile" if sys.platform == "darwin" else "copy"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty current folder, with alpha commands on and without a hub."""
    monkeypatch.setenv("MLXK2_ENABLE_ALPHA_FEATURES", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest, cache_dir: CacheDir) -> CacheDir:
    """Return a cache of each layout."""
    kind: Layout = request.param
    return CacheDir(cache_dir.path, kind)


def content(folder: Path) -> dict[str, bytes | str]:
    """Return the files of a folder, and the targets of links, which a clone must not have."""
    return {name: value for name, value in read_tree(folder).items() if value is not None}


def test_a_clone_is_self_contained_editable_and_healthy(layout: CacheDir, mlxk2: Program, workplace: Path) -> None:
    layout.add(NAME, MODEL)
    before = read_tree(layout.path)
    data = data_of(mlxk2("clone", NAME, "./mine", "--json"), "clone")
    assert (data["model"], data["clone_status"], data["target_dir"]) == (NAME, "success", "./mine")
    assert (data["expanded_name"], data["method"] in ("reflink", METHOD)) == (None, True)
    assert content(workplace / "mine") == MODEL
    for path in (workplace / "mine").rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or (path.stat().st_nlink == 1 and path.stat().st_mode & 0o600 == 0o600)
    shown = data_of(mlxk2("show", "./mine", "--json"), "show")["model"]
    assert (shown["health"], shown["framework"]) == ("healthy", "MLX")
    (workplace / "mine" / "twin.txt").write_bytes(b"edited")
    assert (workplace / "mine" / "twin-2.txt").read_bytes() == b"same"
    assert read_tree(layout.path) == before
    assert [path.name for path in workplace.iterdir()] == ["mine"]


@pytest.mark.parametrize(("word", "full"), [("mod", NAME), ("ORG/MODEL", NAME), ("small", "mlx-community/small")])
def test_short_names_are_expanded(cache_dir: CacheDir, mlxk2: Program, word: str, full: str) -> None:
    cache_dir.add(NAME, MODEL)
    cache_dir.add("mlx-community/small", MODEL)
    data = data_of(mlxk2("clone", word, "mine", "--json"), "clone")
    assert (data["model"], data["expanded_name"]) == (word, full)


def test_a_full_name_never_matches_a_longer_one(cache_dir: CacheDir, mlxk2: Program, workplace: Path) -> None:
    for ending in ("-4bit", "-8bit"):
        cache_dir.add(NAME + ending, MODEL)
        error = error_of(mlxk2("clone", NAME, "mine", "--json"), "clone")
        assert (error["type"], error["data"]["clone_status"]) == ("NetworkError", "pull_failed")
    assert list(workplace.iterdir()) == []


def test_a_revision_or_a_branch_can_be_cloned(cache_dir: CacheDir, mlxk2: Program, workplace: Path) -> None:
    cache_dir.add(NAME, MODEL)
    cache_dir.add(NAME, MODEL | {"twin.txt": b"other"}, OTHER_COMMIT, ref="dev")
    for number, (words, twin) in enumerate(
        {
            (NAME,): b"same",
            (f"{NAME}@{OTHER_COMMIT[:6]}",): b"other",
            (NAME, "--branch", "dev"): b"other",
            (f"{NAME}@{COMMIT}",): b"same",
        }.items()
    ):
        data_of(mlxk2("clone", *words, f"mine-{number}", "--json"), "clone")
        assert (workplace / f"mine-{number}" / "twin.txt").read_bytes() == twin
    both = error_of(mlxk2("clone", f"{NAME}@dev", "x", "--branch", "main", "--json"), "clone")
    assert both["type"] == "ValidationError"
    # An uncached revision needs a pull, which has no hub here.
    assert error_of(mlxk2("clone", NAME, "x", "--branch", "new", "--json"), "clone")["type"] == "NetworkError"


def test_an_existing_empty_folder_is_filled(cache_dir: CacheDir, mlxk2: Program, workplace: Path) -> None:
    cache_dir.add(NAME, MODEL)
    (workplace / "mine").mkdir(mode=0o700)
    data_of(mlxk2("clone", NAME, "mine", "--json"), "clone")
    assert content(workplace / "mine") == MODEL
    assert (workplace / "mine").stat().st_mode & 0o777 == 0o700


def test_a_folder_with_only_files_of_macos_counts_as_empty(
    cache_dir: CacheDir, mlxk2: Program, workplace: Path
) -> None:
    cache_dir.add(NAME, MODEL | {".DS_Store": b"of the model"})
    (workplace / "mine").mkdir()
    litter = {".DS_Store": b"of the user", ".localized": b"", "._notes": b"attributes"}
    for name, data in litter.items():
        (workplace / "mine" / name).write_bytes(data)
    before = read_tree(workplace)
    # A failed clone leaves the folder unchanged.
    error_of(mlxk2("clone", "org/none", "mine", "--json"), "clone")
    assert read_tree(workplace) == before
    data_of(mlxk2("clone", NAME, "mine", "--json"), "clone")
    assert content(workplace / "mine") == MODEL | litter
    assert [path.name for path in workplace.iterdir()] == ["mine"]


def test_the_cache_under_another_path_is_refused_as_target(cache_dir: CacheDir, mlxk2: Program, tmp_path: Path) -> None:
    cache_dir.add(NAME, MODEL)
    before = read_tree(cache_dir.path)
    # The cache has several paths on a disk that ignores case, and with a bind mount.
    with mount(tmp_path / "again", "--bind", str(cache_dir.path)) as again:
        for target in (again / "mine", again / "models--org--model" / "new" / "mine"):
            error = error_of(mlxk2("clone", NAME, str(target), "--json"), "clone")
            assert (error["type"], "in the cache" in error["message"]) == ("InvalidTargetError", True)
    assert read_tree(cache_dir.path) == before


def test_a_link_to_an_empty_folder_is_filled_and_stays_a_link(
    cache_dir: CacheDir, mlxk2: Program, workplace: Path
) -> None:
    cache_dir.add(NAME, MODEL)
    (workplace / "disk" / "there").mkdir(parents=True)
    (workplace / "mine").symlink_to("disk/there")
    data_of(mlxk2("clone", NAME, "mine", "--json"), "clone")
    assert (workplace / "mine").is_symlink()
    assert content(workplace / "disk" / "there") == MODEL


@pytest.mark.parametrize("target", ["full", "file", ".", "", "full/file/x", "x" * 300, "hub"])
def test_an_invalid_target_is_refused(cache_dir: CacheDir, mlxk2: Program, workplace: Path, target: str) -> None:
    cache_dir.add(NAME, MODEL)
    (workplace / "full").mkdir()
    (workplace / "full" / "file").write_bytes(b"x")
    (workplace / "file").write_bytes(b"x")
    before = read_tree(workplace.parent)
    typed = str(cache_dir.path / "mine") if target == "hub" else target
    error = error_of(mlxk2("clone", NAME, typed, "--json"), "clone")
    assert (error["data"]["clone_status"], error["data"]["target_dir"]) == ("filesystem_error", typed)
    assert error["type"] == "InvalidTargetError"
    assert read_tree(workplace.parent) == before


@pytest.mark.parametrize("source", ["./full", "/tmp", "..", "a//b", "a\\b", ""])
def test_an_invalid_source_is_refused(mlxk2: Program, workplace: Path, source: str) -> None:
    error = error_of(mlxk2("clone", source, "mine", "--json"), "clone")
    assert (error["type"], error["data"]["clone_status"]) == ("ValidationError", "error")
    assert list(workplace.iterdir()) == []


def test_damaged_models_are_cloned_only_on_request(layout: CacheDir, mlxk2: Program, workplace: Path) -> None:
    snapshot = layout.add(NAME, without(MODEL, "model-00002-of-00003.safetensors"))
    (snapshot / "dangling.txt").symlink_to("../../blobs/none")
    error = error_of(mlxk2("clone", NAME, "deep/mine", "--json"), "clone")
    assert (error["type"], error["data"]["clone_status"]) == ("ModelUnhealthyError", "health_check_failed")
    assert list(workplace.iterdir()) == []
    data = data_of(mlxk2("clone", NAME, "deep/mine", "--no-health-check", "--json"), "clone")
    assert "dangling.txt" in data["message"]
    assert content(workplace / "deep" / "mine") == without(MODEL, "model-00002-of-00003.safetensors")


def test_the_first_of_many_omitted_files_are_named(cache_dir: CacheDir, mlxk2: Program) -> None:
    snapshot = cache_dir.add(NAME, MODEL)
    for number in range(7):
        (snapshot / f"{number}.txt").symlink_to("../../blobs/none")
    data = data_of(mlxk2("clone", NAME, "mine", "--no-health-check", "--json"), "clone")
    assert "0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more" in data["message"]


def test_a_damaged_model_is_reported_with_the_pull_that_repairs_it(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add(NAME, without(MODEL, "config.json"), ref="dev")
    cache_dir.folder("org/unfinished").mkdir()
    for words, repair in {
        ("mod",): f"mlxk2 pull {NAME}",
        (f"mod@{COMMIT[:6]}",): f"mlxk2 pull {NAME}@{COMMIT[:6]}",
        (NAME, "--branch", "dev"): f"mlxk2 pull {NAME}@dev",
    }.items():
        error = error_of(mlxk2("clone", *words, "mine", "--json"), "clone")
        assert error["hint"] == f"Repair it with: {repair}. Clone it as it is with: --no-health-check"
    error = error_of(mlxk2("clone", "org/unfinished", "mine", "--json"), "clone")
    assert error["hint"] == "Repair it with: mlxk2 pull org/unfinished"


def test_links_out_of_the_cache_are_not_cloned(
    cache_dir: CacheDir, mlxk2: Program, workplace: Path, tmp_path: Path
) -> None:
    snapshot = cache_dir.add(NAME, MODEL)
    (tmp_path / "secret").write_bytes(b"secret")
    (snapshot / "secret.txt").symlink_to(tmp_path / "secret")
    assert error_of(mlxk2("clone", NAME, "mine", "--json"), "clone")["type"] == "ModelUnhealthyError"
    data_of(mlxk2("clone", NAME, "mine", "--no-health-check", "--json"), "clone")
    assert content(workplace / "mine") == MODEL


def test_a_model_without_files_is_refused(cache_dir: CacheDir, mlxk2: Program, workplace: Path) -> None:
    (cache_dir.folder(NAME) / "snapshots").mkdir(parents=True)
    error = error_of(mlxk2("clone", NAME, "mine", "--no-health-check", "--json"), "clone")
    assert error["type"] == "ModelUnhealthyError"
    assert list(workplace.iterdir()) == []


def test_plain_output_is_one_line(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add(NAME, MODEL)
    assert mlxk2("clone", "mod", "mine")[:2] == (0, f"Cloned {NAME} into mine.\n")
    failed = mlxk2("clone", NAME, "mine", "--quiet")
    assert failed == (1, "", "Error: mine exists and is not empty; name a new or an empty folder.\n")


def test_clone_is_disabled_without_its_variable(
    cache_dir: CacheDir, mlxk2: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_dir.add(NAME, MODEL)
    monkeypatch.delenv("MLXK2_ENABLE_ALPHA_FEATURES")
    error = error_of(mlxk2("clone", NAME, "mine", "--json"), "clone", code=2)
    assert (error["type"], "MLXK2_ENABLE_ALPHA_FEATURES" in error["message"]) == ("CommandError", True)


def test_leftovers_of_the_same_target_are_removed(cache_dir: CacheDir, mlxk2: Program, workplace: Path) -> None:
    cache_dir.add(NAME, MODEL)
    command = [sys.executable, "-c", KILLED_WHILE_BUILDING, str(workplace / "mine")]
    assert subprocess.run(command).returncode == -9
    (left,) = workplace.iterdir()
    assert left.name.startswith(".mlxk2-clone-")
    data_of(mlxk2("clone", NAME, "other", "--json"), "clone")
    assert left.exists()
    data_of(mlxk2("clone", NAME, "mine", "--json"), "clone")
    assert {path.name for path in workplace.iterdir()} == {"mine", "other"}


KILLED_WHILE_BUILDING = """
import os, sys
from mlxk2.workspace import clone
with clone.build(sys.argv[1]) as folder:
    open(os.path.join(folder, "model", "half"), "w").write("x")
    os.kill(os.getpid(), 9)
"""


# ------------------------------------------------------------------------------------------------------------- disks


def test_free_space_is_checked_before_writing(cache_dir: CacheDir, mlxk2: Program, tmp_path: Path) -> None:
    cache_dir.add(NAME, MODEL | {"big.bin": b"x" * 3_000_000})
    with mount_tmpfs(tmp_path / "disk", "2m") as disk:
        error = error_of(mlxk2("clone", NAME, str(disk / "mine"), "--json"), "clone")
        assert (error["type"], error["data"]["clone_status"]) == ("OperationError", "filesystem_error")
        assert "3.0MB needed, 2.1MB available" in error["message"]
        assert list(disk.iterdir()) == []


def test_a_full_disk_leaves_no_files(cache_dir: CacheDir, mlxk2: Program, tmp_path: Path) -> None:
    cache_dir.add(NAME, MODEL)
    # The disk has free bytes but no free inodes, which the check of free space does not cover.
    with mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=8m,nr_inodes=8", "tmpfs") as disk:
        error = error_of(mlxk2("clone", NAME, str(disk / "a" / "mine"), "--json"), "clone")
        assert (error["type"], error["data"]["clone_status"]) == ("OperationError", "filesystem_error")
        assert "full" in error["message"]
        assert list(disk.iterdir()) == []


def test_a_file_size_limit_leaves_no_files(cache_dir: CacheDir, workplace: Path) -> None:
    cache_dir.add(NAME, MODEL | {"big.bin": b"x" * 3_000_000})
    command = f"ulimit -f 100; exec {sys.executable} -m mlxk2 clone {NAME} mine"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 1
    assert "larger than the limit of mine" in done.stderr
    assert list(workplace.iterdir()) == []


def test_a_mount_point_is_refused_as_target(cache_dir: CacheDir, mlxk2: Program, tmp_path: Path) -> None:
    cache_dir.add(NAME, MODEL)
    with mount_tmpfs(tmp_path / "disk", "2m") as disk:
        assert error_of(mlxk2("clone", NAME, str(disk), "--json"), "clone")["type"] == "InvalidTargetError"


@pytest.mark.skipif(sys.platform != "linux", reason="reflinks are Linux's; elsewhere every clone tries clonefile")
@pytest.mark.parametrize("system", ["btrfs", "xfs"])
def test_clones_on_btrfs_and_xfs_are_reflinks(
    system: str, mlxk2: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    make = shutil.which(f"mkfs.{system}")
    if make is None:
        pytest.skip(f"mkfs.{system} is not installed")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run([make, "-q", image], check=True, capture_output=True)
    with mount(tmp_path / "disk", "-o", "loop", str(image)) as disk:
        (disk / "hub").mkdir()
        (disk / "hub" / SENTINEL).touch()
        monkeypatch.setenv("HF_HUB_CACHE", str(disk / "hub"))
        CacheDir(disk / "hub", "shared").add(NAME, MODEL | {"big.bin": os.urandom(30_000_000)})
        os.sync()
        before = shutil.disk_usage(disk).free
        data = data_of(mlxk2("clone", NAME, str(disk / "mine"), "--json"), "clone")
        os.sync()
        assert data["method"] == "reflink"
        assert before - shutil.disk_usage(disk).free < 5_000_000
        (disk / "mine" / "big.bin").write_bytes(b"edited")
        assert data_of(mlxk2("health", "--deep", "--json"), "health")["summary"]["healthy_count"] == 1
        # A clone to another file system is a copy.
        data = data_of(mlxk2("clone", NAME, str(workplace / "mine"), "--json"), "clone")
        assert data["method"] == "copy"
        assert data_of(mlxk2("rm", NAME, "--json"), "rm")["freed_bytes"] > 30_000_000
