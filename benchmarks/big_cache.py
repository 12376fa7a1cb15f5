"""Make a Hugging Face cache of many large chat models: `python benchmarks/big_cache.py FOLDER COUNT`.

Each model has real configs, a tokenizer of two megabytes, and safetensors files with real headers of a few hundred
tensors. The weights are holes in the files and take no space on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# All models have different sizes, so all headers are different.
MODEL_BYTES = 3_300_000_000
MORE_BYTES = 4_000_000
WIDTH = 512
TENSORS = 300
SHARDS = 3
TOKENIZER_BYTES = 2_000_000
COMMIT = "0123456789abcdef0123456789abcdef01234567"

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "quantization": {"group_size": 64, "bits": 4},
}
CARD = "---\nlicense: apache-2.0\nlibrary_name: mlx\npipeline_tag: text-generation\ntags:\n- mlx\n---\n# A model\n"


def build(cache_dir: Path, count: int) -> None:
    """Fill a cache folder with `count` chat models; every second one has shards, and all weights are holes."""
    cache_dir.mkdir(parents=True)
    tokenizer = cache_dir.parent / "tokenizer.json"
    vocabulary = {f"token{number:06}": number for number in range(TOKENIZER_BYTES // 21)}
    tokenizer.write_text(json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": vocabulary}}))
    for number in range(count):
        repo = cache_dir / f"models--mlx-community--Model-{number:04}-4bit"
        _add_model(repo, tokenizer)
        _add_weights(repo, SHARDS if number % 2 else 1, MODEL_BYTES + number * MORE_BYTES)


def _add_model(repo: Path, tokenizer: Path) -> None:
    snapshot = repo / "snapshots" / COMMIT
    for folder in (snapshot, repo / "blobs", repo / "refs"):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    template = "{% for message in messages %}" + "{{ message.content }}" * 200 + "{% endfor %}"
    _add_text(repo, "config.json", json.dumps(CONFIG))
    _add_text(repo, "tokenizer_config.json", json.dumps({"chat_template": template}))
    _add_text(repo, "README.md", CARD)
    blob = repo / "blobs" / hashlib.sha256(b"tokenizer").hexdigest()
    os.link(tokenizer, blob)
    _link(snapshot / "tokenizer.json", blob)


def _add_weights(repo: Path, shards: int, size: int) -> None:
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    if shards == 1:
        names = ["model.safetensors"]
    weight_map: dict[str, str] = {}
    for part, name in enumerate(names):
        tensors = list(_tensor_names(part))
        weight_map |= dict.fromkeys(tensors, name)
        _add_hole(repo, name, tensors, size // shards)
    if shards > 1:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        _add_text(repo, "model.safetensors.index.json", json.dumps(index, indent=2))


def _tensor_names(part: int) -> Iterator[str]:
    for number in range(TENSORS // 3):
        for kind in ("weight", "scales", "biases"):
            yield f"model.layers.{part * 12 + number // 9}.self_attn.projection_{number % 9}.{kind}"


def _add_hole(repo: Path, name: str, tensors: list[str], size: int) -> None:
    """Add a safetensors file with a real header, whose data takes no space on the disk."""
    rows = size // len(tensors) // WIDTH // 2
    each = rows * WIDTH * 2
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    for number, tensor in enumerate(tensors):
        offsets = [number * each, (number + 1) * each]
        header[tensor] = {"dtype": "BF16", "shape": [rows, WIDTH], "data_offsets": offsets}
    # The format's own library writes headers in this compact form, padded to eight bytes.
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    blob = repo / "blobs" / hashlib.sha256(name.encode()).hexdigest()
    with blob.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + each * len(tensors))
    _link(repo / "snapshots" / COMMIT / name, blob)


def _add_text(repo: Path, name: str, text: str) -> None:
    content = text.encode()
    blob = repo / "blobs" / hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    blob.write_bytes(content)
    _link(repo / "snapshots" / COMMIT / name, blob)


def _link(path: Path, blob: Path) -> None:
    path.symlink_to(os.path.relpath(blob, path.parent))


if __name__ == "__main__":
    build(Path(sys.argv[1], "hub"), int(sys.argv[2]))
