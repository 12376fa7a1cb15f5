"""Build caches for tests: models laid out on disk exactly as huggingface_hub lays them out.

Three layouts exist: links into the repo's `blobs/` (the usual one), links that lead on into the store which all repos
share (downloads over Xet), and plain copies (file systems without links).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from huggingface_hub.file_download import _create_symlink
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store

Layout = Literal["links", "shared", "copies"]

LAYOUTS: tuple[Layout, ...] = ("links", "shared", "copies")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "abcdefabcdefabcdefabcdefabcdefabcdefabcd"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 123456789\n"
SENTINEL = "TEST_SENTINEL"

# The bits of one element, for each tensor type of the format.
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}

_LFS_ENDINGS = (".safetensors", ".gguf", ".bin", ".model", ".tiktoken", "tokenizer.json")


class Sparse(NamedTuple):
    """A file of `size` bytes that begins with `head`; the rest is a hole and takes no space on the disk."""

    head: bytes
    size: int


Content = bytes | Sparse
Files = dict[str, bytes]
AnyContent = TypeVar("AnyContent", bytes, Content)


@dataclass(frozen=True)
class CacheDir:
    """A cache folder that tests fill with models."""

    path: Path
    layout: Layout = "links"

    def add(self, name: str, files: Mapping[str, Content], commit: str = COMMIT, ref: str | None = "main") -> Path:
        """Lay out a model at one revision and return its snapshot folder."""
        repo = self.folder(name)
        snapshot = repo / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            self._add_file(repo, snapshot / file, content)
        if ref is not None:
            (repo / "refs").mkdir(exist_ok=True)
            (repo / "refs" / ref).write_text(commit)
        return snapshot

    def folder(self, name: str) -> Path:
        """Return the folder of a repo."""
        return self.path / ("models--" + name.replace("/", "--"))

    def _add_file(self, repo: Path, path: Path, content: Content) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.layout == "copies":
            write(path, content)
            return
        blob = repo / "blobs" / blob_name(path.name, content)
        blob.parent.mkdir(exist_ok=True)
        if not blob.exists():
            write(blob, content)
            if self.layout == "shared" and is_large(path.name):
                self._publish(blob, content)
        _create_symlink(str(blob), str(path), new_blob=True)

    def _publish(self, blob: Path, content: Content) -> None:
        xet_hash = hashlib.sha256(b"xet" + blob.name.encode()).hexdigest()
        size = len(content) if isinstance(content, bytes) else content.size
        assert publish_blob_to_shared_store(
            blob_path=str(blob), xet_hash=xet_hash, cache_dir=self.path, expected_size=size
        )


def is_large(name: str) -> bool:
    """Return whether the hub stores a file of this name as a large one, under its SHA-256."""
    return name.endswith(_LFS_ENDINGS)


def blob_name(name: str, content: Content) -> str:
    """Return the name of a file's blob in the cache: SHA-256 for large files, git's blob SHA-1 for small ones."""
    if isinstance(content, Sparse):
        return hashlib.sha256(content.head + str(content.size).encode()).hexdigest()
    if is_large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def write(path: Path, content: Content) -> None:
    """Write a file into an existing folder."""
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    with path.open("wb") as file:
        file.write(content.head)
        file.truncate(content.size)


def replace(path: Path, content: Content) -> None:
    """Replace the bytes of a snapshot's file behind its links, under the same name."""
    target = path.resolve()
    target.unlink()
    write(target, content)


def as_json(value: object) -> bytes:
    """Return a value as the bytes of a JSON file."""
    return json.dumps(value, indent=2).encode()


# ------------------------------------------------------------------------------------------------------ weight files


@cache
def weights(dtype: str = "F16", shape: tuple[int, ...] = (2, 4), *, mlx: bool = True) -> bytes:
    """Return a safetensors file of two small tensors."""
    size = math.prod(shape) * BITS[dtype] // 8
    header = {
        "__metadata__": {"format": "mlx" if mlx else "pt"},
        "model.embed_tokens.weight": tensor(dtype, shape, 0, size),
        "model.norm.weight": tensor(dtype, shape, size, 2 * size),
    }
    return raw_safetensors(header, bytes(i % 251 for i in range(2 * size)))


def raw_safetensors(header: object, data: bytes = b"", pad: int = 0) -> bytes:
    """Return a safetensors file with this header, valid or not, and `pad` spaces after it."""
    text = (header if isinstance(header, bytes) else json.dumps(header).encode()) + b" " * pad
    return len(text).to_bytes(8, "little") + text + data


def tensor(dtype: str, shape: Sequence[object], begin: object, end: object) -> dict[str, object]:
    """Return an entry of a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def sparse_safetensors(tensors: int, size: int, *, mlx: bool = True) -> Sparse:
    """Return a safetensors file of `tensors` equal tensors and about `size` bytes of data, which are a hole."""
    each = size // tensors // 2 * 2
    header: dict[str, object] = {"__metadata__": {"format": "mlx" if mlx else "pt"}}
    for number in range(tensors):
        name = f"model.layers.{number // 9}.self_attn.projection_{number % 9}.weight"
        header[name] = tensor("BF16", [each // 2], number * each, (number + 1) * each)
    head = raw_safetensors(header)
    return Sparse(head, len(head) + tensors * each)


GGUF_STRING, GGUF_ARRAY, GGUF_UINT32, GGUF_FLOAT32 = 8, 9, 4, 6
_F32, _Q4_0 = 0, 2


def gguf_text(text: str | bytes) -> bytes:
    """Return a string as GGUF encodes it."""
    encoded = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(encoded)) + encoded


def gguf_pair(key: str, kind: int, value: bytes) -> bytes:
    """Return a key-value pair of a GGUF header."""
    return gguf_text(key) + struct.pack("<I", kind) + value


def gguf_strings(values: Sequence[str]) -> bytes:
    """Return an array of strings as the value of a GGUF pair."""
    return struct.pack("<IQ", GGUF_STRING, len(values)) + b"".join(map(gguf_text, values))


DEFAULT_PAIRS = (
    gguf_pair("general.architecture", GGUF_STRING, gguf_text("llama")),
    gguf_pair("llama.context_length", GGUF_UINT32, struct.pack("<I", 4096)),
    gguf_pair("llama.rope.freq_base", GGUF_FLOAT32, struct.pack("<f", 10000.0)),
    gguf_pair("tokenizer.ggml.tokens", GGUF_ARRAY, gguf_strings(["<s>", "</s>", "hello"])),
)


def gguf(version: int = 3, pairs: Sequence[bytes] = DEFAULT_PAIRS, alignment: int = 32) -> bytes:
    """Return a GGUF file with an F32 and a Q4_0 tensor, without padding at its end."""
    tensors = (("token_embd.weight", (4, 8), _F32, 128), ("output.weight", (32, 2), _Q4_0, 36))
    table, data = b"", b""
    for name, shape, kind, size in tensors:
        data += bytes(-len(data) % alignment)
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        table += gguf_text(name) + dimensions + struct.pack("<IQ", kind, len(data))
        data += bytes(i % 251 for i in range(size))
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + table
    return header + bytes(-len(header) % alignment) + data


# ------------------------------------------------------------------------------------------------------------ models

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 320,
    "max_position_embeddings": 2048,
}
TOKENIZER = b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}'
OTHER_ARCHITECTURE = {"model_type": "opt", "architectures": ["OPTForCausalLM"]}
TOKENIZER_CONFIG = as_json({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages }}"})
README = b"---\nlicense: apache-2.0\nlibrary_name: mlx\ntags:\n- mlx\n---\n# A model\n"


def chat_model(**config: object) -> Files:
    """Return a sound MLX chat model in one file; keyword arguments change its config."""
    return {
        ".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
        "README.md": README,
        "config.json": as_json(CONFIG | config),
        "model.safetensors": weights(),
        "tokenizer.json": TOKENIZER,
        "tokenizer_config.json": TOKENIZER_CONFIG,
    }


def base_model() -> Files:
    """Return a sound PyTorch base model: no chat template, no sign of MLX, unknown to mlx-lm."""
    files = chat_model(**OTHER_ARCHITECTURE) | {"model.safetensors": weights(mlx=False), "README.md": b"# A model\n"}
    del files["tokenizer_config.json"]
    return files


def shard_names(count: int, stem: str = "model", ending: str = "safetensors") -> list[str]:
    """Return the names of all shards, such as `model-00001-of-00003.safetensors`."""
    return [f"{stem}-{number:05}-of-{count:05}.{ending}" for number in range(1, count + 1)]


def index_of(shards: Sequence[str]) -> bytes:
    """Return an index that places one tensor in each shard."""
    weight_map = {f"model.layers.{i}.weight": shard for i, shard in enumerate(shards)}
    return as_json({"metadata": {"total_size": 32 * len(shards)}, "weight_map": weight_map})


def sharded_model(count: int = 3) -> Files:
    """Return a sound MLX chat model in several shards, with an index."""
    files = chat_model()
    del files["model.safetensors"]
    # Each shard differs, since equal ones would be one blob.
    files |= {name: weights(shape=(2, 4 + i)) for i, name in enumerate(shard_names(count))}
    return files | {"model.safetensors.index.json": index_of(shard_names(count))}


def gguf_model(*names: str) -> Files:
    """Return a sound repo that holds only GGUF files and a card."""
    return {"README.md": b"---\ntags: [gguf]\n---\n", **{name: gguf() for name in names or ("model-Q4_0.gguf",)}}


def without(files: Mapping[str, AnyContent], *names: str) -> dict[str, AnyContent]:
    """Return the files without the named ones."""
    return {name: content for name, content in files.items() if name not in names}
