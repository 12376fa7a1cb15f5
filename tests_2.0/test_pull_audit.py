"""The audit of the files of a revision reads each file once, no matter how many entries lead to it."""

from __future__ import annotations

import pytest
from support.layouts import COMMIT, CacheDir, Layout, blob_name, chat_model, replace

from mlxk2.cache.audit import hash_check, plan_pull
from mlxk2.cache.staging import RemoteFile, Staging

FILES = {name: data for name, data in chat_model().items() if isinstance(data, bytes)}
REQUIRED = [RemoteFile(name, blob_name(name, data), len(data)) for name, data in FILES.items()]
TOTAL = sum(map(len, FILES.values()))


@pytest.mark.parametrize("layout", ["links", "shared", "copies"])
def test_every_byte_is_hashed_once(cache_dir: CacheDir, layout: Layout) -> None:
    snapshot = CacheDir(cache_dir.path, layout).add("org/model", FILES)
    read: list[int] = []
    plan = plan_pull(Staging.of(cache_dir.path, "org/model"), COMMIT, REQUIRED, hash_check(read.append))
    assert (plan.is_empty, sum(read)) == (True, TOTAL)
    replace(snapshot / "model.safetensors", bytes(len(FILES["model.safetensors"])))
    read.clear()
    plan = plan_pull(Staging.of(cache_dir.path, "org/model"), COMMIT, REQUIRED, hash_check(read.append))
    assert ([file.name for file in plan.missing], sum(read)) == (["model.safetensors"], TOTAL)


def test_several_names_of_one_blob_are_hashed_once(cache_dir: CacheDir) -> None:
    files = {"a.txt": b"same" * 100, "b.txt": b"same" * 100}
    cache_dir.add("org/model", files)
    read: list[int] = []
    required = [RemoteFile(name, blob_name(name, data), len(data)) for name, data in files.items()]
    assert plan_pull(Staging.of(cache_dir.path, "org/model"), COMMIT, required, hash_check(read.append)).is_empty
    assert sum(read) == 400
