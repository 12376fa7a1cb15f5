"""`rm`: it removes exactly the named model, reports the freed space and touches nothing outside the cache folder."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Program
from filelock import FileLock
from huggingface_hub.utils import _shared_blobs
from support.conformance import data_of, error_of
from support.filesystems import disk_usage, mount_tmpfs, read_tree
from support.layouts import COMMIT, LAYOUTS, OTHER_COMMIT, SENTINEL, CacheDir, Layout, chat_model, weights

from mlxk2.cache.locks import PULL_LOCK

NAME = "org/model"
FIRST, SECOND = chat_model() | {"a.bin": b"a" * 300_000}, chat_model() | {"b.bin": b"b" * 500_000}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest, cache_dir: CacheDir) -> CacheDir:
    """Return a cache of each layout."""
    kind: Layout = request.param
    return CacheDir(cache_dir.path, kind)


@pytest.fixture
def two(layout: CacheDir) -> CacheDir:
    """Add a model with two revisions that share most blobs, and another model with the same files."""
    layout.add(NAME, FIRST)
    layout.add(NAME, SECOND, OTHER_COMMIT, ref="dev")
    layout.add("org/other", chat_model())
    return layout


def entries(cache_dir: Path) -> set[str]:
    """Return the names in the cache folder, without the store and the locks, which stay."""
    return {entry.name for entry in cache_dir.iterdir()} - {SENTINEL, "blobs", ".locks"}


def healthy(mlxk2: Program) -> dict[str, str | None]:
    """Return the hashes of the listed models; fail unless all are healthy."""
    models = mlxk2("list", "--json").json["data"]["models"]
    assert all(model["health"] == "healthy" for model in models), models
    return {model["name"]: model["hash"] for model in models}


# --------------------------------------------------------------------------------------------------- what is removed


def test_rm_removes_a_model_and_frees_what_it_says(two: CacheDir, mlxk2: Program) -> None:
    before = disk_usage(two.path)
    data = data_of(mlxk2("rm", NAME, "--json"), "rm")
    assert (data["model"], data["action"]) == (NAME, "deleted")
    assert data["freed_bytes"] == before - disk_usage(two.path)
    assert entries(two.path) == {"models--org--other"}
    assert healthy(mlxk2) == {"org/other": COMMIT}


def test_rm_of_one_revision_removes_only_that_revision(two: CacheDir, mlxk2: Program) -> None:
    before = disk_usage(two.path)
    data = data_of(mlxk2("rm", f"{NAME}@{COMMIT[:8]}", "--json"), "rm")
    assert data["freed_bytes"] == before - disk_usage(two.path)
    assert 300_000 <= data["freed_bytes"] < 400_000
    assert healthy(mlxk2) == {NAME: OTHER_COMMIT, "org/other": COMMIT}
    snapshot = two.folder(NAME) / "snapshots" / OTHER_COMMIT
    assert {str(path.relative_to(snapshot)): path.read_bytes() for path in snapshot.iterdir()} == SECOND
    assert [path.name for path in (two.folder(NAME) / "refs").iterdir()] == ["dev"]


@pytest.mark.parametrize("words", [[NAME], [f"{NAME}@dev"], [f"{NAME}@{COMMIT}"]])
def test_dry_run_changes_nothing_and_predicts_exactly(two: CacheDir, mlxk2: Program, words: list[str]) -> None:
    before = read_tree(two.path)
    planned = data_of(mlxk2("rm", *words, "--dry-run", "--json"), "rm")
    assert planned["action"] == "planned"
    assert read_tree(two.path) == before
    deleted = data_of(mlxk2("rm", *words, "--json"), "rm")
    assert deleted["freed_bytes"] == planned["freed_bytes"] > 0


def test_dry_run_prints_what_would_be_deleted(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add(NAME, FIRST)
    result = mlxk2("rm", NAME, "--dry-run")
    assert result.code == 0
    assert result.out.startswith(f"Would delete {NAME} (revision {COMMIT[:7]}); ")
    assert "KB would be freed" in result.out


def test_rm_of_the_last_revision_removes_the_model(layout: CacheDir, mlxk2: Program) -> None:
    layout.add(NAME, FIRST)
    assert data_of(mlxk2("rm", f"{NAME}@main", "--json"), "rm")["action"] == "deleted"
    assert entries(layout.path) == set()


def test_a_shared_file_is_removed_with_its_last_reference(cache_dir: CacheDir, mlxk2: Program) -> None:
    shared = CacheDir(cache_dir.path, "shared")
    for name in (NAME, "org/other"):
        shared.add(name, FIRST)
    payloads = _shared_blobs.shared_store_blob_paths(cache_dir.path)
    # For the second repo the library would create a link to the existing file.
    for blob in (shared.folder("org/other") / "blobs").iterdir():
        assert not blob.is_symlink() or len(payloads) == 3
    first = data_of(mlxk2("rm", NAME, "--json"), "rm")
    assert first["freed_bytes"] < 100_000
    assert _shared_blobs.shared_store_blob_paths(cache_dir.path) == payloads
    assert healthy(mlxk2) == {"org/other": COMMIT}
    second = data_of(mlxk2("rm", "org/other", "--json"), "rm")
    assert second["freed_bytes"] > 300_000
    assert _shared_blobs.shared_store_blob_paths(cache_dir.path) == set()


@pytest.mark.parametrize("others", [(), ("org/other",)])
def test_a_reference_list_is_removed_with_its_last_reference(
    cache_dir: CacheDir, mlxk2: Program, others: tuple[str, ...]
) -> None:
    shared = CacheDir(cache_dir.path, "shared")
    for name in (NAME, *others):
        shared.add(name, FIRST)
    payloads = _shared_blobs.shared_store_blob_paths(cache_dir.path)
    lists = {*(cache_dir.path / "blobs").glob("*/*.refs")}
    # The state after a removal was killed while the library swept its store.
    for payload in payloads:
        payload.unlink()
    for name in (NAME, *others):
        assert {*(cache_dir.path / "blobs").glob("*/*.refs")} == lists != set()
        data_of(mlxk2("rm", name, "--json"), "rm")
    assert {*(cache_dir.path / "blobs").glob("*/*.refs")} == set()


def test_a_shared_file_stays_if_its_references_cannot_be_read(cache_dir: CacheDir, mlxk2: Program) -> None:
    CacheDir(cache_dir.path, "shared").add(NAME, FIRST)
    payloads = _shared_blobs.shared_store_blob_paths(cache_dir.path)
    for manifest in (cache_dir.path / "blobs").glob("*/*.refs"):
        manifest.unlink()
    before = disk_usage(cache_dir.path)
    data = data_of(mlxk2("rm", NAME, "--json"), "rm")
    assert data["freed_bytes"] == before - disk_usage(cache_dir.path) < 100_000
    assert _shared_blobs.shared_store_blob_paths(cache_dir.path) == payloads


def test_rm_drops_refs_and_notes_of_a_removed_revision(cache_dir: CacheDir, mlxk2: Program) -> None:
    for commit, files in ((COMMIT, FIRST), (OTHER_COMMIT, SECOND)):
        cache_dir.add(NAME, files, commit, ref=f"ref-{commit[:3]}")
    folder = cache_dir.folder(NAME)
    for ref in ("feature/x", "feature/y/z", "refs/pr/1"):
        (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(COMMIT)
    (folder / "refs" / "feature" / "kept").write_text(OTHER_COMMIT)
    (folder / "trees").mkdir()
    (folder / ".no_exist").mkdir()
    for commit in (COMMIT, OTHER_COMMIT):
        (folder / "trees" / f"{commit}.json").write_text("[]")
        (folder / ".no_exist" / commit).mkdir()
        (folder / ".no_exist" / commit / "adapter_config.json").touch()
    data_of(mlxk2("rm", f"{NAME}@{COMMIT}", "--json"), "rm")
    refs = {str(path.relative_to(folder / "refs")) for path in (folder / "refs").rglob("*") if path.is_file()}
    assert refs == {f"ref-{OTHER_COMMIT[:3]}", "feature/kept"}
    assert [path.name for path in (folder / "trees").iterdir()] == [f"{OTHER_COMMIT}.json"]
    assert [path.name for path in (folder / ".no_exist").iterdir()] == [OTHER_COMMIT]


def test_a_broken_model_can_be_removed(cache_dir: CacheDir, mlxk2: Program) -> None:
    folder = cache_dir.folder(NAME)
    (folder / "snapshots").mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "blobs" / "abc.incomplete").write_bytes(b"x" * 10_000)
    assert data_of(mlxk2("rm", NAME, "--json"), "rm")["freed_bytes"] >= 10_000
    assert entries(cache_dir.path) == set()


def test_an_unfinished_download_can_be_removed(cache_dir: CacheDir, mlxk2: Program) -> None:
    partial = cache_dir.path / ".models--org--model.incomplete" / "blobs" / "abc.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * 10_000)
    # The name means the unfinished download and not the model whose name contains it.
    cache_dir.add(NAME + "-2", FIRST)
    assert data_of(mlxk2("rm", NAME, "--json"), "rm")["freed_bytes"] >= 10_000
    assert entries(cache_dir.path) == {"models--org--model-2"}


def test_freed_bytes_is_the_space_that_the_disk_gains(
    mlxk2: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mount_tmpfs(tmp_path / "disk", "8m") as disk:
        monkeypatch.setenv("HF_HUB_CACHE", str(disk))
        (disk / SENTINEL).touch()
        snapshot = CacheDir(disk).add(NAME, FIRST)
        with (snapshot / "sparse.bin").open("wb") as file:
            file.truncate(1 << 30)
        (disk / "elsewhere").write_bytes(b"x" * 100_000)
        os.link(disk / "elsewhere", snapshot / "linked.bin")
        os.link(snapshot / "README.md", snapshot / "again.md")
        before = os.statvfs(disk)
        data = data_of(mlxk2("rm", NAME, "--json"), "rm")
        after = os.statvfs(disk)
    assert data["freed_bytes"] == (after.f_bfree - before.f_bfree) * after.f_frsize
    assert 300_000 <= data["freed_bytes"] < 400_000


def test_huggingface_hub_is_imported_only_for_a_shared_store(cache_dir: CacheDir) -> None:
    program = "import sys; from mlxk2.cli.main import main; main(sys.argv[1:]); print('huggingface_hub' in sys.modules)"
    said = []
    for layout in ("links", "shared"):
        CacheDir(cache_dir.path, layout).add(NAME, FIRST)
        command = [sys.executable, "-c", program, "rm", NAME]
        said.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    assert said == ["False", "True"]


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (_shared_blobs.expected_shared_blob_freed_size, ["store_path", "blob_paths_to_delete", "cache_dir"]),
        (_shared_blobs.shared_blob_manifest_path, ["cache_dir", "xet_hash"]),
        (_shared_blobs.shared_blob_target, ["blob_path", "cache_dir"]),
        (_shared_blobs.sweep_shared_blob, ["store_path", "cache_dir"]),
        (_shared_blobs._shared_blob_lock, ["store_path"]),
        (_shared_blobs._read_valid_manifest_references, ["store_path", "cache_dir"]),
    ],
)
def test_private_functions_take_the_expected_parameters(function: Callable[..., object], parameters: list[str]) -> None:
    assert list(inspect.signature(function).parameters) == parameters


def test_undeletable_trash_does_not_stop_another_removal(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add(NAME, FIRST)
    stuck = cache_dir.path / ".trash-model-1" / "models--org--stuck"
    stuck.mkdir(parents=True)
    if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", stuck], capture_output=True).returncode:
        pytest.skip("chattr +i is not there, or not permitted")
    try:
        data = data_of(mlxk2("rm", NAME, "--json"), "rm")
    finally:
        subprocess.run(["chattr", "-i", stuck], check=True)
    assert "earlier removal" in data["message"]
    assert entries(cache_dir.path) == {".trash-model-1"}
    assert data_of(mlxk2("rm", "org/stuck", "--json"), "rm")["action"] == "deleted"
    assert entries(cache_dir.path) == set()


# ------------------------------------------------------------------------------------- the sizes of `list` and of `rm`

LARGE = chat_model() | {"model.safetensors": weights(shape=(1000, 1000))}  # 4.0 MB
CUT_SHORT = "blobs/" + "0" * 64 + ".incomplete"


def test_equal_sizes_of_list_and_rm_are_not_explained(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add(NAME, LARGE)
    listed = mlxk2("list", "--json").json["data"]["models"][0]["size_bytes"]
    data = data_of(mlxk2("rm", NAME, "--dry-run", "--json"), "rm")
    assert 0 <= data["freed_bytes"] - listed < 100_000
    assert data["message"].endswith(" would be freed.")
    assert data_of(mlxk2("rm", NAME, "--force", "--json"), "rm")["message"].endswith(" freed.")


def add_another_revision(cache_dir: CacheDir) -> None:
    cache_dir.add(NAME, LARGE | {"more.bin": b"m" * 2_000_000}, OTHER_COMMIT, ref="dev")


def add_another_model(cache_dir: CacheDir) -> None:
    shutil.rmtree(cache_dir.folder(NAME))
    for name in (NAME, "org/other"):
        CacheDir(cache_dir.path, "shared").add(name, LARGE)


def cut_a_download_short(cache_dir: CacheDir) -> None:
    (cache_dir.folder(NAME) / CUT_SHORT).write_bytes(b"m" * 2_000_000)


DIFFERENCES = {
    "a model of two revisions": (add_another_revision, NAME, "`mlxk2 list` shows 4.0MB, the size of one revision."),
    "a revision of two": (
        add_another_revision,
        f"{NAME}@dev",
        "The revision has 6.0MB, of which 4.0MB stay, because other revisions or models need them.",
    ),
    "shared with another model": (
        add_another_model,
        NAME,
        "`mlxk2 list` shows 4.0MB, of which 4.0MB stay, because other models need them.",
    ),
    "with an unfinished download": (
        cut_a_download_short,
        NAME,
        "`mlxk2 list` shows 4.0MB; earlier and unfinished downloads left the rest.",
    ),
}


@pytest.mark.parametrize(("change", "argument", "words"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_different_sizes_of_list_and_rm_are_explained(
    cache_dir: CacheDir, mlxk2: Program, change: Callable[[CacheDir], None], argument: str, words: str
) -> None:
    cache_dir.add(NAME, LARGE)
    change(cache_dir)
    assert mlxk2("rm", argument, "--dry-run").out.endswith(f" would be freed. {words}\n")
    assert mlxk2("rm", argument, "--force").out.endswith(f" freed. {words}\n")


# --------------------------------------------------------------------------------------------- which model is meant


@pytest.mark.parametrize("words", [["--json"], []])
def test_a_partial_name_needs_confirmation(cache_dir: CacheDir, mlxk2: Program, words: list[str]) -> None:
    cache_dir.add(NAME, FIRST)
    before = read_tree(cache_dir.path)
    result = mlxk2("rm", "MOD", *words)
    assert (result.code, read_tree(cache_dir.path)) == (1, before)
    if not words:
        assert NAME in result.err
        return
    error = error_of(result, "rm")
    assert error["type"] == "confirmation_required"
    assert (error["data"]["action"], error["data"]["model"]) == ("requires_confirmation", NAME)
    assert error["data"]["freed_bytes"] == error["data"]["lock_files_cleaned"] == 0


@pytest.mark.parametrize("option", ["-f", "-y", "--yes"])
def test_force_and_yes_replace_the_confirmation(cache_dir: CacheDir, mlxk2: Program, option: str) -> None:
    cache_dir.add(NAME, FIRST)
    assert data_of(mlxk2("rm", "mod", option, "--json"), "rm")["model"] == NAME


def test_a_name_without_the_default_org_needs_no_confirmation(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("mlx-community/model", FIRST)
    cache_dir.add("org/model", FIRST)
    assert data_of(mlxk2("rm", "model", "--json"), "rm")["model"] == "mlx-community/model"
    assert entries(cache_dir.path) == {"models--org--model"}


REFUSED = ("org/", "demo", "./model", "/tmp", "..", "", "org/../model", "org/model@../x", "org\\model")


@pytest.mark.parametrize(
    ("word", "kind"),
    [("or", "ambiguous_match"), ("nothing", "model_not_found")] + [(word, "ValidationError") for word in REFUSED],
)
def test_an_invalid_or_ambiguous_model_is_refused(cache_dir: CacheDir, mlxk2: Program, word: str, kind: str) -> None:
    cache_dir.add(NAME, FIRST)
    cache_dir.add("org/other", FIRST)
    before = read_tree(cache_dir.path)
    assert error_of(mlxk2("rm", word, "--json", "--force"), "rm")["type"] == kind
    assert read_tree(cache_dir.path) == before


def test_an_unknown_hash_is_an_error_with_the_available_ones(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add(NAME, FIRST)
    error = error_of(mlxk2("rm", f"{NAME}@ffffff", "--json"), "rm")
    assert (error["type"], error["available_hashes"]) == ("hash_not_found", [COMMIT])


def test_names_that_look_the_same_are_ambiguous(cache_dir: CacheDir, mlxk2: Program) -> None:
    for number in (b"\xfe", b"\xff"):
        os.mkdir(os.fsencode(cache_dir.path) + b"/models--org--x" + number)
    error = error_of(mlxk2("rm", "org/x\N{REPLACEMENT CHARACTER}", "--json"), "rm")
    assert error["type"] == "ambiguous_match"
    assert len(entries(cache_dir.path)) == 2


def test_the_strict_variable_refuses_a_cache_without_the_sentinel(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add(NAME, FIRST)
    (cache_dir.path / SENTINEL).unlink()
    before = read_tree(cache_dir.path)
    assert error_of(mlxk2("rm", NAME, "--force", "--json"), "rm")["type"] == "OperationError"
    assert read_tree(cache_dir.path) == before
    (cache_dir.path / SENTINEL).touch()
    data_of(mlxk2("rm", NAME, "--json"), "rm")


def test_rm_in_an_empty_or_missing_cache_is_model_not_found(
    cache_dir: CacheDir, mlxk2: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert error_of(mlxk2("rm", NAME, "--json"), "rm")["type"] == "model_not_found"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache_dir.path / "none"))
    assert error_of(mlxk2("rm", NAME, "--json"), "rm")["type"] == "model_not_found"
    assert not (cache_dir.path / "none").exists()


# ------------------------------------------------------------------------------------------------------------ locks


@pytest.fixture
def locks(cache_dir: CacheDir) -> Path:
    """Add a model and return the folder of its lock files with a stale one."""
    cache_dir.add(NAME, FIRST)
    folder = cache_dir.path / ".locks" / "models--org--model"
    folder.mkdir(parents=True)
    (folder / "stale.lock").touch()
    return folder


@pytest.fixture(params=["etag.lock", PULL_LOCK])
def living(request: pytest.FixtureRequest, locks: Path) -> Iterator[Path]:
    """Yield a lock that is held, by the library or by our own pull."""
    path = locks / request.param
    with FileLock(path):
        yield path


def test_stale_locks_are_removed_and_counted(locks: Path, mlxk2: Program) -> None:
    (locks / "other.lock").touch()
    assert data_of(mlxk2("rm", NAME, "--json"), "rm")["lock_files_cleaned"] == 2
    assert not locks.exists()


@pytest.mark.parametrize("options", [(), ("--yes",)])
def test_held_locks_forbid_removal(cache_dir: CacheDir, living: Path, mlxk2: Program, options: tuple[str, ...]) -> None:
    before = read_tree(cache_dir.path)
    error = error_of(mlxk2("rm", NAME, "--json", *options), "rm")
    assert error["type"] == "locks_present"
    assert error["data"]["locks_detected"] is True
    assert error["data"]["lock_files"] == [f".locks/models--org--model/{living.name}"]
    assert read_tree(cache_dir.path) == before
    planned = data_of(mlxk2("rm", NAME, "--dry-run", "--json"), "rm")
    assert planned["lock_files"] == error["data"]["lock_files"]


def test_force_removes_the_model_but_not_held_locks(cache_dir: CacheDir, living: Path, mlxk2: Program) -> None:
    assert data_of(mlxk2("rm", NAME, "--force", "--json"), "rm")["lock_files_cleaned"] == 1
    assert (entries(cache_dir.path), list(living.parent.iterdir())) == (set(), [living])


def test_locks_of_a_dead_process_are_stale(locks: Path, mlxk2: Program) -> None:
    program = f"import os, filelock; filelock.FileLock({str(locks / 'dead.lock')!r}).acquire(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    assert data_of(mlxk2("rm", NAME, "--json"), "rm")["lock_files_cleaned"] == 2


def test_odd_files_among_the_locks_are_ignored(locks: Path, tmp_path: Path, mlxk2: Program) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    (locks / "link.lock").symlink_to(victim)
    os.mkfifo(locks / "pipe.lock")
    (locks / "folder.lock").mkdir()
    assert data_of(mlxk2("rm", NAME, "--json"), "rm")["lock_files_cleaned"] == 1
    assert victim.exists()


# --------------------------------------------------------------------------------------------- links out of the cache


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """Yield files outside the cache in the layout of a model; fail if they change."""
    outside = CacheDir(tmp_path / "outside")
    outside.path.mkdir()
    outside.add(NAME, FIRST)
    outside.add(NAME, SECOND, OTHER_COMMIT, ref=None)
    before = read_tree(outside.path)
    yield outside.folder(NAME)
    assert read_tree(outside.path) == before


def test_rm_of_a_linked_model_removes_only_the_link(cache_dir: CacheDir, victim: Path, mlxk2: Program) -> None:
    cache_dir.folder(NAME).symlink_to(victim)
    assert error_of(mlxk2("rm", f"{NAME}@{COMMIT}", "--json"), "rm")["type"] == "OperationError"
    assert cache_dir.folder(NAME).is_symlink()
    data = data_of(mlxk2("rm", NAME, "--json"), "rm")
    assert "link" in data["message"]
    assert entries(cache_dir.path) == set()


@pytest.mark.parametrize("part", ["snapshots", "blobs", "refs", f"snapshots/{COMMIT}", "trees", ".no_exist"])
@pytest.mark.parametrize("argument", [NAME, f"{NAME}@{COMMIT}"])
def test_links_inside_a_model_are_not_followed(
    cache_dir: CacheDir, victim: Path, mlxk2: Program, part: str, argument: str
) -> None:
    cache_dir.add(NAME, FIRST)
    cache_dir.add(NAME, SECOND, OTHER_COMMIT, ref=None)
    place = cache_dir.folder(NAME) / part
    if place.exists():
        place.rename(cache_dir.path / "moved")
    place.symlink_to(victim / part if (victim / part).exists() else victim)
    mlxk2("rm", argument, "--json", "--force")
    if argument == NAME:
        assert not cache_dir.folder(NAME).exists()


def test_links_out_of_the_shared_store_are_not_followed(cache_dir: CacheDir, victim: Path, mlxk2: Program) -> None:
    shared = CacheDir(cache_dir.path, "shared")
    shared.add(NAME, FIRST)
    for number, target in enumerate((str(victim / "refs" / "main"), "../../../../etc/hostname", "../../blobs/../../x")):
        (shared.folder(NAME) / "blobs" / f"{number:064}").symlink_to(target)
    data_of(mlxk2("rm", NAME, "--json"), "rm")


def test_a_linked_folder_of_the_store_is_not_touched(cache_dir: CacheDir, tmp_path: Path, mlxk2: Program) -> None:
    CacheDir(cache_dir.path, "shared").add(NAME, FIRST)
    payloads = sorted(_shared_blobs.shared_store_blob_paths(cache_dir.path))
    for payload in payloads:
        if not payload.parent.is_symlink():
            payload.parent.rename(tmp_path / payload.parent.name)
            payload.parent.symlink_to(tmp_path / payload.parent.name)
    data = data_of(mlxk2("rm", NAME, "--json"), "rm")
    assert data["freed_bytes"] < 100_000
    assert all(payload.is_file() for payload in payloads)


def test_a_linked_lock_folder_is_not_touched(cache_dir: CacheDir, victim: Path, mlxk2: Program) -> None:
    cache_dir.add(NAME, FIRST)
    (victim / "stale.lock").touch()
    (cache_dir.path / ".locks").mkdir()
    (cache_dir.path / ".locks" / "models--org--model").symlink_to(victim)
    assert data_of(mlxk2("rm", NAME, "--json"), "rm")["lock_files_cleaned"] == 0
    (victim / "stale.lock").unlink()


def test_rm_works_in_a_cache_behind_a_link(
    cache_dir: CacheDir, tmp_path: Path, mlxk2: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    CacheDir(cache_dir.path, "shared").add(NAME, FIRST)
    (tmp_path / "alias").symlink_to(cache_dir.path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "alias"))
    before = disk_usage(cache_dir.path)
    data = data_of(mlxk2("rm", NAME, "--json"), "rm")
    assert data["freed_bytes"] == before - disk_usage(cache_dir.path) > 300_000
    assert (tmp_path / "alias").is_symlink()


def test_hostile_refs_are_not_followed(cache_dir: CacheDir, victim: Path, mlxk2: Program) -> None:
    cache_dir.add(NAME, FIRST)
    cache_dir.add(NAME, SECOND, OTHER_COMMIT, ref="dev")
    refs = cache_dir.folder(NAME) / "refs"
    (victim / "refs" / "outside").write_text(COMMIT)
    (refs / "link").symlink_to(victim / "refs" / "outside")
    (refs / "folder").symlink_to(victim / "refs")
    os.mkfifo(refs / "pipe")
    (refs / "up").write_text("../../../outside")
    (refs / "long").write_text(COMMIT + "x" * 1_000)
    data_of(mlxk2("rm", f"{NAME}@{COMMIT}", "--json"), "rm")
    assert {path.name for path in refs.iterdir()} == {"link", "folder", "pipe", "up", "long", "dev"}
    (victim / "refs" / "outside").unlink()


def test_abandoned_trash_is_removed_without_following_links(cache_dir: CacheDir, victim: Path, mlxk2: Program) -> None:
    cache_dir.add(NAME, FIRST)
    for number, name in enumerate(("models--org--model", "snapshots", "other")):
        trash = cache_dir.path / f".trash-model-{number}"
        trash.mkdir()
        (trash / name).symlink_to(victim)
    revision = cache_dir.path / ".trash-revision-0" / "models--org--model"
    revision.mkdir(parents=True)
    (revision / "snapshots").symlink_to(victim / "snapshots")
    (revision / "blobs").symlink_to(victim / "blobs")
    (cache_dir.path / ".trash-model-9").symlink_to(victim)
    data_of(mlxk2("rm", NAME, "--json"), "rm")
    assert entries(cache_dir.path) == {".trash-model-9"}
