"""`list` remembers its findings and notices every change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Program
from support.layouts import COMMIT, CacheDir, chat_model, gguf_model

from mlxk2.cache.index import SETTLED_NS, index_file

Change = Callable[[Path], object]

FROM_MEMORY = "remembered/not-looked-at"


def settle() -> None:
    """Wait until the files are old enough for `list` to remember them."""
    time.sleep(SETTLED_NS / 1e9 + 0.1)


def remembered(cache_dir: CacheDir) -> Path:
    return Path(index_file(os.path.realpath(cache_dir.path), os.environ))


def names(mlxk2: Program) -> list[str]:
    return [model["name"] for model in mlxk2("list", "--json").json["data"]["models"]]


def verdicts(mlxk2: Program) -> dict[str, str]:
    return {model["name"]: model["health"] for model in mlxk2("list", "--json").json["data"]["models"]}


@pytest.fixture
def known(cache_dir: CacheDir, mlxk2: Program) -> Path:
    """Return a cache that `list` remembers; in its memory, every model has another name."""
    snapshot = cache_dir.add("org/chat", chat_model())
    cache_dir.add("org/gguf", gguf_model())
    settle()
    assert names(mlxk2) == ["org/chat", "org/gguf"]
    rename_remembered(cache_dir)
    return snapshot


def rename_remembered(cache_dir: CacheDir) -> None:
    """Give every model in the memory another name, which shows when `list` uses its memory."""
    file = remembered(cache_dir)
    content = json.loads(file.read_text())
    for _, model in content["snapshots"].values():
        model["name"] = FROM_MEMORY
    file.write_text(json.dumps(content))


@pytest.mark.usefixtures("known")
def test_an_unchanged_model_is_remembered(mlxk2: Program) -> None:
    assert names(mlxk2) == [FROM_MEMORY, FROM_MEMORY]


def _flip(snapshot: Path) -> None:
    path = os.path.realpath(snapshot / "model.safetensors")
    content = bytearray(Path(path).read_bytes())
    content[12] ^= 1
    with open(path, "r+b") as file:
        file.write(content)


def _rewrite_with_its_old_time(snapshot: Path) -> None:
    path = os.path.realpath(snapshot / "model.safetensors")
    before = os.stat(path)
    _flip(snapshot)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _relink(snapshot: Path) -> None:
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../blobs/gone")


@pytest.mark.parametrize(
    "change",
    [
        _flip,
        _rewrite_with_its_old_time,
        _relink,
        lambda snapshot: (snapshot / "tokenizer.json").unlink(),
        lambda snapshot: (snapshot / "x.incomplete").touch(),
        lambda snapshot: os.truncate(os.path.realpath(snapshot / "model.safetensors"), 20),
    ],
)
def test_a_change_is_seen_at_once(known: Path, mlxk2: Program, change: Change) -> None:
    change(known)
    found = verdicts(mlxk2)
    assert found == {"org/chat": "unhealthy", FROM_MEMORY: "healthy"}


# A disk such as FAT keeps no ctime and reports in its place the mtime, which any program can set.
WITHOUT_CTIME = """
import os, sys, types
def stat(path, *args, real=os.stat, **named):
    status = real(path, *args, **named)
    found = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
    return types.SimpleNamespace(**(found | {"st_ctime_ns": status.st_mtime_ns, "st_ctime": status.st_mtime}))
os.stat = stat
from mlxk2.cli.main import main
sys.exit(main(["list", "--json"]))
"""


@pytest.mark.parametrize("change", [None, _rewrite_with_its_old_time])
def test_a_change_is_seen_on_a_disk_without_ctime(cache_dir: CacheDir, change: Change | None) -> None:
    def listed() -> list[str]:
        command = [sys.executable, "-c", WITHOUT_CTIME]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return [model["name"] for model in json.loads(done.stdout)["data"]["models"]]

    snapshot = cache_dir.add("org/chat", chat_model())
    for path in (snapshot, *snapshot.iterdir()):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    assert listed() == ["org/chat"]
    rename_remembered(cache_dir)
    if change:
        change(snapshot)
    assert listed() == (["org/chat"] if change else [FROM_MEMORY])


def test_another_revision_is_seen_at_once(known: Path, cache_dir: CacheDir, mlxk2: Program) -> None:
    other = COMMIT[::-1]
    shutil.copytree(known, known.parent / other, symlinks=True)
    (cache_dir.folder("org/chat") / "refs" / "main").write_text(other)
    hashes = {model["hash"] for model in mlxk2("list", "--json").json["data"]["models"]}
    assert other in hashes


@pytest.mark.usefixtures("known")
def test_a_change_of_mlx_lm_is_seen_at_once(
    cache_dir: CacheDir, mlxk2: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editable installation is included: an import hook finds mlx-lm, not a folder of `sys.path`."""
    installed = tmp_path / "src" / "mlx_lm"
    (installed / "models").mkdir(parents=True)
    (installed / "utils.py").touch()
    spec = spec_from_file_location("mlx_lm", installed / "__init__.py", submodule_search_locations=[str(installed)])
    hook = SimpleNamespace(find_spec=lambda name, *_: spec if name == "mlx_lm" else None)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not Path(path, "mlx_lm").is_dir()])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, hook])
    monkeypatch.delitem(sys.modules, "mlx_lm", raising=False)
    assert names(mlxk2) == ["org/chat", "org/gguf"]
    rename_remembered(cache_dir)
    assert names(mlxk2) == [FROM_MEMORY, FROM_MEMORY]
    (installed / "utils.py").write_text("changed = True")
    assert names(mlxk2) == ["org/chat", "org/gguf"]


@pytest.mark.usefixtures("known")
def test_health_and_show_always_read_the_files(mlxk2: Program) -> None:
    assert [entry["name"] for entry in mlxk2("health", "--json").json["data"]["healthy"]] == ["org/chat", "org/gguf"]
    assert mlxk2("show", "org/chat", "--json").json["data"]["model"]["name"] == "org/chat"


@pytest.mark.usefixtures("known")
def test_listing_with_a_pattern_keeps_the_whole_memory(cache_dir: CacheDir, mlxk2: Program) -> None:
    before = remembered(cache_dir).read_bytes()
    assert mlxk2("list", "chat", "--json").code == 0
    assert remembered(cache_dir).read_bytes() == before


def test_a_folder_under_two_names_is_remembered_under_both(cache_dir: CacheDir, mlxk2: Program) -> None:
    """The name alone makes one of them an embedding model."""
    cache_dir.add("org/chat", chat_model())
    cache_dir.folder("other/embed").symlink_to(cache_dir.folder("org/chat"))
    settle()
    first, again = (mlxk2("list", "--json").json["data"]["models"] for _ in range(2))
    assert [(model["name"], model["model_type"]) for model in first] == [
        ("org/chat", "chat"),
        ("other/embed", "embedding"),
    ]
    assert again == first
    rename_remembered(cache_dir)
    assert names(mlxk2) == [FROM_MEMORY, FROM_MEMORY]


def test_a_removed_model_is_forgotten(known: Path, cache_dir: CacheDir, mlxk2: Program) -> None:
    shutil.rmtree(known.parent.parent)
    names(mlxk2)
    assert str(known) not in remembered(cache_dir).read_text()


def test_a_model_changed_just_now_is_not_remembered(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/chat", chat_model())
    names(mlxk2)
    assert not remembered(cache_dir).exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"stamp": 1}', b'{"stamp": "other", "snapshots": {}}', b"\xff\xfe", b"[" * 99_999],
)
def test_a_damaged_memory_is_ignored(cache_dir: CacheDir, mlxk2: Program, content: bytes) -> None:
    cache_dir.add("org/chat", chat_model())
    remembered(cache_dir).parent.mkdir(parents=True)
    remembered(cache_dir).write_bytes(content)
    assert names(mlxk2) == ["org/chat"]


OF_AN_OLDER_VERSION = {"name": FROM_MEMORY, "hash": None, "health": "healthy", "runtime_compatible": True}


@pytest.mark.parametrize(
    "snapshots",
    [[], 5, {"x": 5}, {"x": ["a"]}, {"x": ["a", 5]}, {"x": None}, {"x": ["a", OF_AN_OLDER_VERSION]}],
)
@pytest.mark.usefixtures("known")
def test_a_memory_of_another_shape_is_ignored(cache_dir: CacheDir, mlxk2: Program, snapshots: object) -> None:
    content = json.loads(remembered(cache_dir).read_text())
    remembered(cache_dir).write_text(json.dumps({**content, "snapshots": snapshots}))
    assert names(mlxk2) == ["org/chat", "org/gguf"]


def test_list_works_if_its_memory_cannot_be_written(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/chat", chat_model())
    settle()
    remembered(cache_dir).parent.parent.mkdir(parents=True, exist_ok=True)
    remembered(cache_dir).parent.touch()
    assert names(mlxk2) == ["org/chat"]
