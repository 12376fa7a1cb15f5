"""The rules of health on real models: a part of one is copied out of the user's cache and then damaged.

`MLXK2_USER_HF_HOME` or `HF_HOME` names the user's cache, which is only read. `MLXK2_ISSUE27_MODEL` is a model there,
`MLXK2_ISSUE27_INDEX_MODEL` one with an index; by default they are the first suitable ones. `MLXK2_SUBSET_COUNT` shards
(1; 0 copies the index alone) are copied if `MLXK2_MIN_FREE_MB` (512) stay free. With `MLXK2_BOOTSTRAP_INDEX=1` a
missing index is downloaded.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import Program
from huggingface_hub import hf_hub_download
from support.layouts import LFS_POINTER

from mlxk2.cache.store import Cache

Part = tuple[Path, Path, list[Path]]
"""The snapshot of a copied part, its index, and the shards that are there."""

pytestmark = pytest.mark.issue27

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def user_hub() -> Path:
    home = os.environ.get("MLXK2_USER_HF_HOME") or os.environ["HF_HOME"]
    cache_dir = Path(home).expanduser() / "hub"
    return cache_dir if cache_dir.is_dir() else Path(home).expanduser()


def wanted_or_first(variable: str, fits: Callable[[Path], bool]) -> Path:
    """Return the snapshot of the model that a variable names, or of the first suitable one."""
    cache, name = Cache(user_hub()), os.environ.get(variable)
    models = [model for model in cache.scan() if name in (None, "", model.name)]
    snapshots = (Path(model.snapshot().path) for model in models if not model.snapshot().is_missing)
    found = next((path for path in snapshots if name or fits(path)), None)
    if found is None:
        pytest.skip(f"User model not found: {name or 'none that fits'} in {user_hub()}")
    return found


def index_in(snapshot: Path) -> Path | None:
    return next((snapshot / name for name in INDEXES if (snapshot / name).is_file()), None)


@pytest.fixture
def real_model(user_cache_is_known: bool) -> Path:
    """Return the snapshot of a real model."""
    assert user_cache_is_known
    return wanted_or_first("MLXK2_ISSUE27_MODEL", lambda path: (path / "config.json").is_file())


@pytest.fixture
def user_cache_is_known() -> bool:
    if not user_hub().is_dir():
        pytest.skip(f"no cache at {user_hub()}")
    return True


@pytest.fixture
def part(user_cache_is_known: bool, isolated_cache: Path) -> Part:
    """Copy config, index and the smallest shards of a real model into the isolated cache."""
    assert user_cache_is_known
    variable = "MLXK2_ISSUE27_INDEX_MODEL" if os.environ.get("MLXK2_ISSUE27_INDEX_MODEL") else "MLXK2_ISSUE27_MODEL"
    source = wanted_or_first(variable, lambda path: index_in(path) is not None)
    index = index_in(source) or bootstrapped_index(source)
    shards = sorted({source / name for name in json.loads(index.read_text())["weight_map"].values()}, key=size_of)
    chosen = [shard for shard in shards if shard.is_file()][: subset_count()]
    need_room(isolated_cache, chosen)
    snapshot = isolated_cache / "models--part--model" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    small = [path for path in source.iterdir() if path.suffix in (".json", ".txt", ".model", ".jinja")]
    for path in (*small, *chosen):
        shutil.copyfile(path, snapshot / path.name)
    shutil.copyfile(index, snapshot / index.name)
    return snapshot, snapshot / index.name, [snapshot / shard.name for shard in chosen]


@pytest.fixture
def whole_part(part: Part) -> Part:
    """Return the part of a real model with its index reduced to the copied shards, so that it is complete."""
    snapshot, index, shards = part
    if not shards:
        pytest.skip("no shard of the model is there" if subset_count() else "MLXK2_SUBSET_COUNT=0 copies no shard")
    restrict_to(index, shards)
    return snapshot, index, shards


def subset_count() -> int:
    return int(os.environ.get("MLXK2_SUBSET_COUNT", "1"))


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def bootstrapped_index(source: Path) -> Path:
    if os.environ.get("MLXK2_BOOTSTRAP_INDEX") != "1":
        pytest.skip("No safetensors index found; MLXK2_BOOTSTRAP_INDEX=1 would download one")
    repo = source.parent.parent.name.removeprefix("models--").replace("--", "/")
    return Path(hf_hub_download(repo, INDEXES[0], local_dir=os.environ["HF_HOME"]))


def need_room(folder: Path, files: Sequence[Path]) -> None:
    spare = int(os.environ.get("MLXK2_MIN_FREE_MB", "512")) << 20
    needed = sum(map(size_of, files)) + spare
    if shutil.disk_usage(folder).free < needed:
        pytest.skip(f"Not enough free space: {needed >> 20} MB are needed")


def restrict_to(index: Path, shards: Sequence[Path]) -> None:
    """Reduce the index to these shards, so that the model is complete."""
    content = json.loads(index.read_text())
    names = {shard.name for shard in shards}
    content["weight_map"] = {key: name for key, name in content["weight_map"].items() if name in names}
    index.write_text(json.dumps(content))


def reason(mlxk2: Program) -> str:
    data = mlxk2("health", "part/model", "--json").json["data"]
    return str((data["healthy"] + data["unhealthy"])[0]["reason"])


def test_a_real_model_is_healthy(real_model: Path, mlxk2: Program) -> None:
    entry = mlxk2("health", str(real_model), "--json").json["data"]
    assert entry["summary"]["healthy_count"] == 1, entry


def test_a_model_with_missing_shards_is_unhealthy(part: Part, mlxk2: Program) -> None:
    _, index, shards = part
    if len(set(json.loads(index.read_text())["weight_map"].values())) == len(shards):
        pytest.skip("all shards of this model were copied")
    assert reason(mlxk2).startswith("Missing shard")


def test_a_model_with_all_shards_of_its_index_is_healthy(whole_part: Part, mlxk2: Program) -> None:
    assert whole_part
    assert reason(mlxk2) == "Model is healthy"


def test_a_deleted_shard_is_found(whole_part: Part, mlxk2: Program) -> None:
    _, _, shards = whole_part
    shards[0].unlink()
    assert reason(mlxk2) == f"Missing shard: {shards[0].name}"


def test_a_truncated_shard_is_found(whole_part: Part, mlxk2: Program) -> None:
    _, _, shards = whole_part
    if shards[0].suffix != ".safetensors":
        pytest.skip("only safetensors files contain their length")
    with shards[0].open("r+b") as file:
        file.truncate(size_of(shards[0]) - 1)
    assert reason(mlxk2) == f"{shards[0].name} is truncated: 1 bytes are missing"


def test_a_git_lfs_pointer_in_place_of_a_shard_is_found(whole_part: Part, mlxk2: Program) -> None:
    _, _, shards = whole_part
    shards[0].write_bytes(LFS_POINTER)
    assert "Git LFS pointer" in reason(mlxk2)


def test_a_broken_index_is_found(part: Part, mlxk2: Program) -> None:
    _, index, _ = part
    index.write_text("{")
    why = "Expecting property name enclosed in double quotes: line 1 column 2"
    assert reason(mlxk2) == f"{index.name} is not valid JSON ({why})"
