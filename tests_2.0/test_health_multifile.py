"""The rules of health: every kind of damage is found and named, and every sound layout is healthy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import Program
from support.layouts import (
    CONFIG,
    LAYOUTS,
    LFS_POINTER,
    README,
    TOKENIZER,
    CacheDir,
    Content,
    Files,
    Layout,
    Sparse,
    as_json,
    base_model,
    chat_model,
    gguf,
    gguf_model,
    index_of,
    shard_names,
    sharded_model,
    sparse_safetensors,
    weights,
    without,
)

from mlxk2.cache.store import Cache
from mlxk2.checkpoint.checksums import examine
from mlxk2.names import Repo

SHARDS = shard_names(3)
INDEX = "model.safetensors.index.json"
BIN_SHARDS = shard_names(2, "pytorch_model", "bin")
BIN_INDEX = "pytorch_model.bin.index.json"


def verdict(mlxk2: Program, name: str = "org/model") -> tuple[str, str]:
    """Return the health entry of the model; fail unless `show` agrees with it."""
    data = mlxk2("health", name, "--json").json["data"]
    (entry,) = data["healthy"] + data["unhealthy"]
    model = mlxk2("show", name, "--json").json["data"]["model"]
    assert model["health"] == entry["status"]
    if entry["status"] == "unhealthy":
        assert (model["reason"], model["runtime_compatible"]) == (entry["reason"], False)
    return entry["status"], entry["reason"]


# ---------------------------------------------------------------------------------------------------------------- sound


def plain(**files: bytes) -> Files:
    return without(base_model(), "model.safetensors", "tokenizer.json") | files


def torch_model(*names: str) -> Files:
    return without(base_model(), "model.safetensors") | {name: b"PK\x03\x04" + name.encode() for name in names}


def tokenized(*names: str) -> Files:
    return without(chat_model(), "tokenizer.json") | {name: b"content of " + name.encode() for name in names}


SOUND = {
    "one file": chat_model(),
    "sharded with an index": sharded_model(),
    "one shard with an index": sharded_model(1),
    "an index for one file": chat_model() | {INDEX: index_of(["model.safetensors"])},
    "GGUF": gguf_model(),
    "GGUF in parts": gguf_model(*shard_names(3, "big-Q4_0", "gguf")),
    "GGUF of several kinds in folders": gguf_model("Q4_0/m-Q4_0.gguf", "Q8_0/m-Q8_0.gguf"),
    "GGUF in parts in folders": gguf_model(*shard_names(2, "Q8_0/m", "gguf"), *shard_names(3, "Q4_0/m", "gguf")),
    "GGUF with a config": gguf_model() | {"config.json": b'{"model_type": "llama"}'},
    "GGUF that chats, with a config": gguf_model() | without(chat_model(), "tokenizer.json", "model.safetensors"),
    "GGUF with a projector": gguf_model("m-Q4_0.gguf", "mmproj-f16.gguf"),
    "GGUF beside safetensors": chat_model() | {"model-f16.gguf": gguf()},
    "PyTorch": torch_model("pytorch_model.bin"),
    "PyTorch in shards": torch_model(*BIN_SHARDS) | {BIN_INDEX: index_of(BIN_SHARDS)},
    "an index of PyTorch shards that were not wanted": base_model() | {BIN_INDEX: index_of(BIN_SHARDS)},
    "PyTorch in shards beside safetensors": base_model() | torch_model(*BIN_SHARDS) | {BIN_INDEX: index_of(BIN_SHARDS)},
    "training arguments beside it": chat_model() | {"training_args.bin": b"PK\x03\x04"},
    "an empty text beside it": chat_model() | {"requirements.txt": b"", "py.typed": b""},
    "SentencePiece alone": tokenized("tokenizer.model"),
    "SentencePiece of T5": tokenized("spiece.model"),
    "tiktoken": tokenized("qwen.tiktoken"),
    "tekken": tokenized("tekken.json"),
    "BPE": tokenized("vocab.json", "merges.txt"),
    "WordPiece": tokenized("vocab.txt"),
    "an embedding model": base_model()
    | {
        "config.json": as_json({"model_type": "bert", "architectures": ["BertModel"]}),
        "1_Pooling/config.json": b'{"word_embedding_dimension": 384}',
        "modules.json": b"[]",
        "onnx/model.onnx": b"\x08\x07",
        "onnx/model_quantized.onnx": b"\x08\x08",
    },
    "no tokenizer of a model that writes no text": plain(**{"model.safetensors": weights()})
    | {"config.json": as_json({"model_type": "vit", "architectures": ["ViTForImageClassification"]})},
    "no tokenizer without a sign of text": plain(**{"model.safetensors": weights()})
    | {"config.json": b'{"model_type": "snac"}'},
    "no tokenizer of a part of another model": plain(**{"model.safetensors": weights()})
    | {"config.json": as_json({"model_type": "llama", "architectures": ["LlamaDraftModel"]})},
    "the original beside it": chat_model()
    | {
        "original/consolidated.00.pth": b"PK\x03\x04",
        "original/params.json": b"{}",
        "original/tokenizer.model": b"\n\x0e",
    },
    "consolidated beside shards": sharded_model() | {"consolidated.safetensors": weights(mlx=False)},
    "consolidated shards with their index": without(chat_model(), "model.safetensors")
    | {name: weights(shape=(3, i + 2)) for i, name in enumerate(shard_names(2, "consolidated"))}
    | {"consolidated.safetensors.index.json": index_of(shard_names(2, "consolidated"))},
    "an adapter beside it": chat_model()
    | {"adapters.safetensors": weights("F32"), "adapter_config.json": b'{"rank": 8}', "adapter_model.bin": b"PK"},
    "quantised": chat_model(quantization={"group_size": 64, "bits": 4, "mode": "affine"})
    | {"model.safetensors": weights("U32")},
    "fp8": chat_model(quantization_config={"quant_method": "fp8"}) | {"model.safetensors": weights("F8_E4M3")},
    "fp4": chat_model() | {"model.safetensors": weights("F4", (4, 4))},
    "empty tensors": chat_model() | {"model.safetensors": weights("F16", (0, 4))},
    "scalars": chat_model() | {"model.safetensors": weights("I64", ())},
    "mamba2": chat_model() | {"config.json": b'{"model_type": "mamba2", "time_step_limit": [0.0, Infinity]}'},
    "a card without front matter": chat_model() | {"README.md": b"# Title\n"},
    "a card with a byte order mark": chat_model() | {"README.md": b"\xef\xbb\xbf" + README},
    "a card with CRLF": chat_model() | {"README.md": README.replace(b"\n", b"\r\n")},
    "an empty card": chat_model() | {"README.md": b""},
    "a config with CRLF": chat_model() | {"config.json": as_json(CONFIG).replace(b"\n", b"\r\n")},
    "a config with a byte order mark": chat_model() | {"config.json": b"\xef\xbb\xbf" + as_json(CONFIG)},
    "a config of a megabyte": chat_model(id2label={str(i): f"label number {i}" for i in range(40_000)}),
    "a config within a config": chat_model(text_config={"vision_config": {"a": {"b": {"c": [[[[1]]]]}}}}),
    "a tokenizer config of megabytes": chat_model()
    | {"tokenizer_config.json": as_json({"added": ["x" * 99] * 30_000, "chat_template": "{{ messages }}"})},
    "large weights": chat_model() | {"model.safetensors": sparse_safetensors(300, 50_000_000_000)},
    "files with names in any script": chat_model() | {"说明.md": b"x", "données é.txt": b"x", "a b.txt": b"x"},
    "signs of macOS": chat_model()
    | {".DS_Store": b"\0\0\0\1Bud1", "._model.safetensors": bytes(100), "._config.json": b""},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("files", SOUND.values(), ids=SOUND)
def test_a_sound_layout_is_healthy(isolated_cache: Path, mlxk2: Program, files: Files, layout: Layout) -> None:
    CacheDir(isolated_cache, layout).add("org/model", files)
    assert verdict(mlxk2) == ("healthy", "Model is healthy")


ODD = {
    "shards without an index": (without(sharded_model(), INDEX), f"{INDEX} is missing"),
    "PyTorch shards without an index": (torch_model(*BIN_SHARDS), f"{BIN_INDEX} is missing"),
    "a whole file and the index of shards": (chat_model() | {INDEX: index_of(SHARDS)}, f"it names {SHARDS[0]}"),
    "shards and the index of more shards": (sharded_model() | {INDEX: index_of(shard_names(5))}, "00001-of-00005"),
    "shards and the index of a whole file": (sharded_model() | {INDEX: index_of(["model.safetensors"])}, "it names"),
    "a whole file and the index of one part": (chat_model() | {INDEX: index_of(shard_names(1))}, "00001-of-00001"),
    "PyTorch, whole, and the index of shards": (
        torch_model("pytorch_model.bin") | {BIN_INDEX: index_of(BIN_SHARDS)},
        f"it names {BIN_SHARDS[0]}",
    ),
}


@pytest.mark.parametrize(("files", "warning"), ODD.values(), ids=ODD)
def test_whole_weights_with_an_odd_index_are_healthy_with_a_warning(
    cache_dir: CacheDir, mlxk2: Program, files: Files, warning: str
) -> None:
    cache_dir.add("org/model", files)
    assert verdict(mlxk2) == ("healthy", "Model is healthy")
    for command in ("health", "show"):
        assert warning in mlxk2(command, "org/model", "--json").err


def test_a_single_numbered_file_needs_no_index(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/model", without(sharded_model(1), INDEX))
    assert verdict(mlxk2) == ("healthy", "Model is healthy")
    assert mlxk2("health", "org/model", "--json").err == ""


def test_files_of_the_hub_library_are_no_damage(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/model", chat_model())
    folder = cache_dir.folder("org/model")
    for path in (".no_exist/0123/adapter_config.json", "trees/0123.json", "blobs/abc.1234.incomplete", "refs/v1.0"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    assert verdict(mlxk2)[0] == "healthy"


def test_a_model_folder_linked_to_another_disk_is_healthy(cache_dir: CacheDir, mlxk2: Program, tmp_path: Path) -> None:
    disk = CacheDir(tmp_path / "disk")
    disk.add("org/model", sharded_model())
    cache_dir.folder("org/model").symlink_to(disk.folder("org/model"))
    assert verdict(mlxk2)[0] == "healthy"


def test_a_cache_behind_a_link_is_healthy(
    cache_dir: CacheDir, mlxk2: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_dir.add("org/model", chat_model())
    (tmp_path / "link").symlink_to(cache_dir.path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "link"))
    assert verdict(mlxk2)[0] == "healthy"


def test_snapshots_that_share_blobs_are_healthy(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/model", chat_model(), "a" * 40)
    cache_dir.add("org/model", chat_model() | {"README.md": b"# New\n"}, "b" * 40)
    assert verdict(mlxk2, "org/model@aaa")[0] == verdict(mlxk2, "org/model@bbb")[0] == "healthy"


# -------------------------------------------------------------------------------------------------------------- damaged


WHOLE = weights()
DAMAGED: dict[str, tuple[Mapping[str, Content], str]] = {
    # Rule 2: the config.
    "no config": (without(chat_model(), "config.json"), "config.json is missing"),
    "an empty config": (chat_model() | {"config.json": b""}, "config.json is not valid JSON"),
    "half a config": (chat_model() | {"config.json": as_json(CONFIG)[:40]}, "config.json is not valid JSON"),
    "a config without content": (chat_model() | {"config.json": b"{}"}, "config.json is not a JSON object"),
    "a list for a config": (chat_model() | {"config.json": b"[1]"}, "config.json is not a JSON object"),
    "a config in UTF-16": (chat_model() | {"config.json": '{"a": 1}'.encode("utf-16")}, "config.json is not valid"),
    "a config that is a pointer": (chat_model() | {"config.json": LFS_POINTER}, "config.json is a Git LFS pointer"),
    "GGUF with a broken config": (gguf_model() | {"config.json": b"{"}, "config.json is not valid JSON"),
    # Rule 3: the index.
    "a shard missing": (without(sharded_model(), SHARDS[1]), f"Missing shard: {SHARDS[1]}"),
    "all shards missing": (without(sharded_model(), *SHARDS), f"Missing shard: {SHARDS[0]}"),
    "an empty shard": (sharded_model() | {SHARDS[2]: b""}, f"{SHARDS[2]} is empty"),
    "a shard that is a pointer": (sharded_model() | {SHARDS[0]: LFS_POINTER}, f"{SHARDS[0]} is a Git LFS pointer"),
    "a broken index": (sharded_model() | {INDEX: b"{"}, f"{INDEX} is not valid JSON"),
    "an empty index": (sharded_model() | {INDEX: b"{}"}, f"{INDEX} is not a JSON object"),
    "an index without a map": (sharded_model() | {INDEX: b'{"metadata": {}}'}, f"{INDEX} has no weight_map"),
    "an index with an empty map": (sharded_model() | {INDEX: b'{"weight_map": {}}'}, f"{INDEX} has no weight_map"),
    "an index with a list": (sharded_model() | {INDEX: b'{"weight_map": ["a"]}'}, f"{INDEX} has no weight_map"),
    "an index that leads up": (sharded_model() | {INDEX: index_of(["../x.safetensors"])}, "names a path outside"),
    "an index that leads away": (sharded_model() | {INDEX: index_of(["/etc/passwd"])}, "names a path outside"),
    "an index of numbers": (sharded_model() | {INDEX: b'{"weight_map": {"a": 1}}'}, "Missing shard: 1"),
    "an index of one of three": (
        without(sharded_model(), SHARDS[0], SHARDS[2]) | {INDEX: index_of(SHARDS)},
        f"Missing shard: {SHARDS[0]}",
    ),
    "a PyTorch shard missing": (
        torch_model(BIN_SHARDS[0]) | {BIN_INDEX: index_of(BIN_SHARDS)},
        f"Missing shard: {BIN_SHARDS[1]}",
    ),
    # Rule 4: no index.
    "no weights": (without(chat_model(), "model.safetensors"), "No weight files"),
    "training arguments alone": (plain(**{"training_args.bin": b"PK"}), "No weight files"),
    "some shards without an index": (without(sharded_model(), INDEX, SHARDS[1]), f"Missing shards: {SHARDS[1]}"),
    "PyTorch shards without an index": (torch_model(BIN_SHARDS[0]), f"Missing shards: {BIN_SHARDS[1]}"),
    "a stale index beside shards of which one is missing": (
        without(sharded_model(), SHARDS[1]) | {INDEX: index_of(shard_names(5))},
        f"Missing shards: {SHARDS[1]}",
    ),
    "a whole file beside one shard of the index": (
        without(sharded_model(), *SHARDS[1:]) | {"model.safetensors": weights()},
        f"Missing shard: {SHARDS[1]}",
    ),
    "an index beside weights of another stem": (
        without(chat_model(), "model.safetensors") | {INDEX: index_of(SHARDS), "model-mtp.safetensors": weights()},
        f"Missing shard: {SHARDS[0]}",
    ),
    "a stale index beside a truncated file": (
        chat_model() | {INDEX: index_of(SHARDS), "model.safetensors": weights()[:-3]},
        "model.safetensors is truncated",
    ),
    "consolidated shards, one missing": (
        without(chat_model(), "model.safetensors")
        | {"consolidated-00001-of-00002.safetensors": WHOLE}
        | {"consolidated.safetensors.index.json": index_of(shard_names(2, "consolidated"))},
        "Missing shard: consolidated-00002-of-00002.safetensors",
    ),
    "a part of a GGUF missing": (gguf_model(*shard_names(3, "m", "gguf")[:2]), "m-00003-of-00003.gguf"),
    "a part of one GGUF of two missing": (
        gguf_model("m-Q4_0.gguf", *shard_names(2, "Q8/m", "gguf")[1:]),
        "Q8/m-00001-of-00002.gguf",
    ),
    # Rule 5: the headers.
    "a truncated file": (chat_model() | {"model.safetensors": WHOLE[:-1]}, "model.safetensors is truncated"),
    "a truncated shard": (
        sharded_model() | {SHARDS[1]: weights(shape=(2, 5))[:-7]},
        f"{SHARDS[1]} is truncated: 7 bytes are missing",
    ),
    "a truncated large file": (
        chat_model() | {"model.safetensors": Sparse(sparse_safetensors(9, 9_000_000_000).head, 8_000_000_000)},
        "model.safetensors is truncated",
    ),
    "a truncated adapter": (chat_model() | {"adapters.safetensors": WHOLE[:50]}, "adapters.safetensors is truncated"),
    "a truncated file in a folder": (chat_model() | {"original/x.safetensors": WHOLE[:-1]}, "original/x.safetensors"),
    "text for weights": (
        chat_model() | {"model.safetensors": b"<html>" * 99},
        "model.safetensors is not a safetensors",
    ),
    "a truncated GGUF": (gguf_model() | {"model-Q4_0.gguf": gguf()[:-1]}, "model-Q4_0.gguf is truncated"),
    "text for a GGUF": (gguf_model() | {"model-Q4_0.gguf": b"<html>"}, "model-Q4_0.gguf is not a GGUF file"),
    # Rule 6: unfinished files.
    "an empty file": (chat_model() | {"model.safetensors": b""}, "model.safetensors is empty"),
    "an empty GGUF": (gguf_model() | {"model-Q4_0.gguf": b""}, "model-Q4_0.gguf is empty"),
    "an empty PyTorch file": (torch_model() | {"pytorch_model.bin": b""}, "pytorch_model.bin is empty"),
    "a pointer for weights": (chat_model() | {"model.safetensors": LFS_POINTER}, "model.safetensors is a Git LFS"),
    "a pointer for a tokenizer": (chat_model() | {"tokenizer.json": LFS_POINTER}, "tokenizer.json is a Git LFS"),
    "a pointer in a folder": (chat_model() | {"onnx/model.onnx": LFS_POINTER}, "onnx/model.onnx is a Git LFS"),
    **{
        f"a file that is {ending}": (chat_model() | {f"sub/model.safetensors{ending}": b"x"}, "Unfinished download")
        for ending in (".partial", ".tmp", ".incomplete")
    },
    # Rule 7: the tokenizer.
    "no tokenizer": (without(chat_model(), "tokenizer.json"), "No tokenizer"),
    "no tokenizer of a base model": (without(base_model(), "tokenizer.json"), "No tokenizer"),
    "no tokenizer of an architecture that mlx-lm knows": (
        plain(**{"model.safetensors": weights(), "config.json": b'{"model_type": "llama"}'}),
        "No tokenizer",
    ),
    "no tokenizer but that of another file": (
        without(chat_model(), "tokenizer.json") | {"extra.gguf": gguf()},
        "No tokenizer",
    ),
    "half a BPE": (tokenized("vocab.json"), "No tokenizer"),
    "an empty tokenizer": (chat_model() | {"tokenizer.json": b""}, "tokenizer.json is empty"),
}


@pytest.mark.parametrize(("files", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_found_and_named(cache_dir: CacheDir, mlxk2: Program, files: Files, reason: str) -> None:
    cache_dir.add("org/model", files)
    status, said = verdict(mlxk2)
    assert status == "unhealthy"
    assert reason in said
    assert len(said) < 200


def test_the_first_problem_is_the_reason(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/model", without(sharded_model(), "config.json", SHARDS[0], "tokenizer.json"))
    assert verdict(mlxk2) == ("unhealthy", "config.json is missing")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lost", [*SHARDS, "config.json", "tokenizer.json"])
def test_a_model_with_a_missing_file_is_unhealthy(
    isolated_cache: Path, mlxk2: Program, layout: Layout, lost: str
) -> None:
    snapshot = CacheDir(isolated_cache, layout).add("org/model", sharded_model())
    (snapshot / lost).unlink()
    assert verdict(mlxk2)[0] == "unhealthy"


@pytest.mark.parametrize("layout", ["links", "shared"])
@pytest.mark.parametrize("name", sorted(chat_model()))
def test_a_dangling_link_is_found(isolated_cache: Path, mlxk2: Program, layout: Layout, name: str) -> None:
    snapshot = CacheDir(isolated_cache, layout).add("org/model", chat_model())
    (snapshot / name).resolve().unlink()
    assert verdict(mlxk2) == ("unhealthy", f"{name} is a dangling link")


def test_a_model_without_a_snapshot_is_unhealthy(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.folder("org/model").mkdir()
    assert verdict(mlxk2) == ("unhealthy", "No snapshot: the model was never downloaded completely")


def test_an_empty_snapshot_is_unhealthy(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/model", {})
    assert verdict(mlxk2) == ("unhealthy", "The snapshot is empty")


def test_a_folder_in_place_of_the_config_counts_as_missing(cache_dir: CacheDir, mlxk2: Program) -> None:
    snapshot = cache_dir.add("org/model", without(chat_model(), "config.json"))
    (snapshot / "config.json").mkdir()
    assert verdict(mlxk2) == ("unhealthy", "config.json is missing")


def test_broken_models_do_not_hide_a_sound_one(cache_dir: CacheDir, mlxk2: Program) -> None:
    for number, (files, _) in enumerate(DAMAGED.values()):
        cache_dir.add(f"broken/model-{number:03}", files)
    cache_dir.add("org/sound", chat_model())
    summary = mlxk2("health", "--json").json["data"]["summary"]
    assert summary == {"total": len(DAMAGED) + 1, "healthy_count": 1, "unhealthy_count": len(DAMAGED)}
    assert mlxk2("list", "--json").json["data"]["count"] == len(DAMAGED) + 1


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_the_exit_code_is_the_verdict_only_on_request(
    cache_dir: CacheDir, mlxk2: Program, form: tuple[str, ...]
) -> None:
    assert mlxk2("health", "--exit-code", *form).code == 0
    cache_dir.add("org/sound", chat_model())
    cache_dir.add("org/broken", without(chat_model(), "config.json"))
    for words, code in (((), 1), (("sound",), 0), (("broken",), 1), (("nonesuch",), 1)):
        plain = mlxk2("health", *words, *form)
        assert plain.code == 0
        assert mlxk2("health", *words, "--exit-code", *form) == (code, plain.out, plain.err)


# ----------------------------------------------------------------------------------------------------------------- deep


def flip(path: Path, position: int = -1) -> None:
    """Change one bit of a snapshot's file, behind its links."""
    path = path.resolve()
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize("layout", ["links", "shared"])
@pytest.mark.parametrize("name", sorted(chat_model()))
def test_deep_finds_one_flipped_bit_in_any_file(
    isolated_cache: Path, mlxk2: Program, layout: Layout, name: str
) -> None:
    snapshot = CacheDir(isolated_cache, layout).add("org/model", chat_model())
    data = mlxk2("health", "--deep", "--json").json["data"]
    assert data["summary"]["healthy_count"] == 1
    flip(snapshot / name)
    (entry,) = mlxk2("health", "--deep", "--json").json["data"]["unhealthy"]
    assert name in entry["reason"]


def test_deep_names_every_corrupt_file(cache_dir: CacheDir, mlxk2: Program) -> None:
    snapshot = cache_dir.add("org/model", sharded_model())
    for name in SHARDS:
        flip(snapshot / name)
    assert verdict(mlxk2)[0] == "healthy"
    (entry,) = mlxk2("health", "--deep", "--json").json["data"]["unhealthy"]
    assert entry["reason"] == f"Corrupt content: {', '.join(SHARDS)}"


def test_deep_keeps_the_first_problem(cache_dir: CacheDir, mlxk2: Program) -> None:
    snapshot = cache_dir.add("org/model", without(chat_model(), "tokenizer.json"))
    flip(snapshot / "model.safetensors")
    (entry,) = mlxk2("health", "--deep", "--json").json["data"]["unhealthy"]
    assert entry["reason"].startswith("No tokenizer")
    assert entry["reason"].endswith("; corrupt content: model.safetensors")


def test_deep_names_every_corrupt_file_of_an_unhealthy_model(cache_dir: CacheDir, mlxk2: Program) -> None:
    snapshot = cache_dir.add("org/model", sharded_model())
    os.truncate((snapshot / SHARDS[0]).resolve(), 50)
    flip(snapshot / SHARDS[2])
    (snapshot / SHARDS[1]).resolve().unlink()
    _, said = verdict(mlxk2)
    (entry,) = mlxk2("health", "--deep", "--json").json["data"]["unhealthy"]
    assert entry["reason"] == f"{said}; corrupt content: {SHARDS[0]}, {SHARDS[2]}"


def test_deep_continues_after_an_unreadable_file(cache_dir: CacheDir) -> None:
    folder = cache_dir.add("org/model", sharded_model())
    snapshot = Cache(cache_dir.path).resolve(Repo("org/model"))
    assert snapshot.files
    (folder / "README.md").resolve().unlink()
    flip(folder / SHARDS[2])
    findings = examine(snapshot, lambda _: None)
    assert findings.corrupt == (SHARDS[2],)
    assert [problem.partition(" can't be read")[0] for problem in findings.unreadable] == ["README.md"]


def test_deep_skips_files_without_a_hash_and_says_so(isolated_cache: Path, mlxk2: Program) -> None:
    files = chat_model() | {"tokenizer.json": TOKENIZER}
    CacheDir(isolated_cache, "copies").add("org/model", files)
    note = f"Note: {len(files)} files have no hash to compare with; the content was not checked.\n"
    assert mlxk2("health", "--deep").err == note
    result = mlxk2("health", "--deep", "--json")
    assert (result.json["data"]["summary"]["healthy_count"], result.err) == (1, "")


def test_deep_mentions_a_single_file_without_a_hash(cache_dir: CacheDir, mlxk2: Program) -> None:
    snapshot = cache_dir.add("org/model", chat_model())
    assert mlxk2("health", "--deep").err == ""
    (snapshot / "notes.txt").write_text("mine")
    assert mlxk2("health", "--deep").err.startswith("Note: 1 file has no hash ")
