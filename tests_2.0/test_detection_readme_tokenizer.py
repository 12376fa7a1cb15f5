"""Detection of a model's framework by org, card and weights, and of its type by config, card, template and name."""

from __future__ import annotations

from typing import Any, Protocol

import pytest
from conftest import Program
from support.layouts import (
    CONFIG,
    OTHER_ARCHITECTURE,
    README,
    TOKENIZER_CONFIG,
    CacheDir,
    Files,
    as_json,
    base_model,
    chat_model,
    gguf_model,
    shard_names,
    sharded_model,
    weights,
    without,
)

PLAIN_CARD = b"# A model\n"
MLX_QUANTIZED = CONFIG | OTHER_ARCHITECTURE | {"quantization": {"group_size": 64, "bits": 4}}


def config(**changes: object) -> Files:
    return {"config.json": as_json(CONFIG | changes)}


class Describe(Protocol):
    """Add a model and return its model object from `show`."""

    def __call__(self, files: Files, name: str = "org/model") -> dict[str, Any]: ...


@pytest.fixture
def described(cache_dir: CacheDir, mlxk2: Program) -> Describe:
    """Return a function that adds a model and returns its model object from `show`."""

    def describe(files: Files, name: str = "org/model") -> dict[str, Any]:
        cache_dir.add(name, files)
        model: dict[str, Any] = mlxk2("show", name, "--json").json["data"]["model"]
        return model

    return describe


# ----------------------------------------------------------------------------------------------------------- framework


def card(front: str, newline: str = "\n") -> bytes:
    return f"---\n{front}\n---\n# A model\n".replace("\n", newline).encode()


MLX_CARDS = {
    "a tag": card("tags:\n- text\n- mlx"),
    "a tag in a line": card("tags: [mlx, chat]"),
    "one tag as text": card("tags: mlx"),
    "another case": card("tags: [MLX]"),
    "mlx-lm for the library": card("library_name: mlx-lm"),
    "a quoted tag": card("tags: ['mlx']"),
    "the library": card("library_name: mlx"),
    "CRLF": card("tags:\n- mlx", newline="\r\n"),
    "a byte order mark": b"\xef\xbb\xbf" + card("library_name: mlx"),
    "spaces after the dashes": card("library_name: mlx").replace(b"---\n", b"--- \n"),
    "an alias": card("words: &words [mlx]\ntags: *words"),
    "no UTF-8 in the text": card("library_name: mlx") + b"caf\xe9\n",
    "dates and numbers": card("date: 2024-02-31\nversion: 1.0\nlibrary_name: mlx\nnan: .nan\nbig: 1e999"),
}
RESULTS = "model-index:\n- name: x\n  results:\n" + "".join(
    f"  - dataset:\n      name: library_name {i}\n    metrics:\n    - type: accuracy\n      value: {i}\n"
    for i in range(6_000)
)
LONG_CARDS = {
    "above": card(RESULTS + "tags:\n- text\n- mlx"),
    "below": card("library_name: mlx\n" + RESULTS.rstrip()),
    "between": card(RESULTS + "tags: [\ntext,\nmlx\n]\nother:\n- name: tags"),
    "with comments, quoted": card(RESULTS + "# why: so\n'tags' :\n# because: of it\n\n- mlx"),
    "after broken lines": card(RESULTS + "broken: [x\nlibrary_name: mlx"),
}
OTHER_CARDS = {
    "no front matter": PLAIN_CARD,
    "an empty file": b"",
    "not at the beginning": b"# Title\n" + card("tags: [mlx]"),
    "no end": b"---\ntags: [mlx]\n",
    "another tag": card("tags: [mlx-audio, gguf]\nlibrary_name: mlx-vlm"),
    "the word elsewhere": card("description: for mlx\nbase_model: mlx"),
    "in the text": PLAIN_CARD + b"tags: [mlx]\n",
    "a list": card("- mlx"),
    "broken": card("tags: [mlx"),
    "a tag within a tag": card("tags: {mlx: 1}"),
    "tabs": card("tags:\n\t- mlx"),
    "an unknown alias": card("tags: *mlx"),
    "two documents": card("tags: [x]\n--- \nlibrary_name: mlx"),
}


@pytest.mark.parametrize("readme", LONG_CARDS.values(), ids=LONG_CARDS)
@pytest.mark.timeout(5)
def test_a_card_with_many_benchmark_results_is_read(described: Describe, readme: bytes) -> None:
    assert len(readme) > 500_000
    assert described(base_model() | {"README.md": readme})["framework"] == "MLX"


@pytest.mark.parametrize("readme", MLX_CARDS.values(), ids=MLX_CARDS)
def test_a_card_that_names_mlx_makes_the_framework_mlx(described: Describe, readme: bytes) -> None:
    assert described(base_model() | {"README.md": readme})["framework"] == "MLX"


@pytest.mark.parametrize("readme", OTHER_CARDS.values(), ids=OTHER_CARDS)
def test_a_card_that_does_not_name_mlx_leaves_the_framework_pytorch(described: Describe, readme: bytes) -> None:
    model = described(base_model() | {"README.md": readme})
    assert (model["framework"], model["health"]) == ("PyTorch", "healthy")


@pytest.mark.parametrize(
    ("name", "files", "framework"),
    [
        ("mlx-community/x", base_model(), "MLX"),
        ("mlx-community/x", gguf_model(), "MLX"),
        ("mlx-communityx/x", base_model(), "PyTorch"),
        ("org/mlx", base_model(), "PyTorch"),
        ("org/x", base_model() | {"model.safetensors": weights(mlx=True)}, "MLX"),
        ("org/x", base_model() | {"config.json": as_json(MLX_QUANTIZED)}, "MLX"),
        ("org/x", gguf_model() | {"config.json": as_json(MLX_QUANTIZED)}, "GGUF"),
        ("org/x", base_model() | {"config.json": as_json(MLX_QUANTIZED | {"quantization": {"bits": 4}})}, "PyTorch"),
        ("org/x", gguf_model(), "GGUF"),
        ("org/x", base_model() | gguf_model(), "GGUF"),
        ("org/x", gguf_model() | {"README.md": README}, "MLX"),
        ("org/x", without(base_model(), "model.safetensors") | {"pytorch_model.bin": b"PK"}, "PyTorch"),
        ("org/x", without(base_model(), "model.safetensors") | {"training_args.bin": b"PK"}, "Unknown"),
        ("org/x", without(base_model(), "model.safetensors") | {"tf_model.h5": b"HDF"}, "Unknown"),
        ("org/x", {"README.md": PLAIN_CARD}, "Unknown"),
    ],
)
def test_the_framework_depends_on_org_card_and_weights(
    described: Describe, name: str, files: Files, framework: str
) -> None:
    model = described(files, name)
    assert model["framework"] == framework
    if model["health"] == "healthy" and framework != "MLX":
        assert model["reason"] == f"Framework {framework} not executable with mlx-lm (requires MLX)"


SHARDS_INDEX = "model.safetensors.index.json"
GPTQ = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
ORDERED = weights(mlx=False).replace(b'"model.norm.weight"', b'"model.norm.g_idx" ')
LOADED_AS_THEY_ARE = {
    "plain weights": {},
    "shards": without(sharded_model(), "README.md", "config.json")
    | {name: weights(mlx=False) for name in shard_names(3)},
    "no architecture named": config(architectures=None),
    "a vision model": config(architectures=["LlavaForConditionalGeneration"], model_type="llava"),
    "AWQ": config(quantization_config={"quant_method": "awq", "bits": 4, "group_size": 128}),
    "GPTQ without an order of its groups": config(**GPTQ),
    "beside GGUF": without(gguf_model(), "README.md", "config.json"),
}
NOT_LOADED = {
    "another architecture": config(model_type="opt"),
    "no architecture": config(model_type=None),
    "a classifier": config(architectures=["LlamaForSequenceClassification"]),
    "a base for embeddings": config(architectures=["LlamaModel"]),
    "an embedding model by its card": {"README.md": card("pipeline_tag: sentence-similarity")},
    "code of its own": config(model_file="model.py"),
    "bitsandbytes": config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "AWQ of 8 bits": config(quantization_config={"quant_method": "awq", "bits": 8}),
    "GPTQ with an order of its groups": config(**GPTQ) | {"model.safetensors": ORDERED},
}
OTHER_WEIGHTS = {
    "a LoRA adapter alone": "adapter_model.safetensors",
    "weights in a folder": "transformer/model.safetensors",
    "another name": "consolidated.safetensors",
    "weights of PyTorch": "pytorch_model.bin",
}


@pytest.mark.parametrize("files", LOADED_AS_THEY_ARE.values(), ids=LOADED_AS_THEY_ARE)
def test_weights_that_mlx_lm_can_load_are_mlx_without_a_label(described: Describe, files: Files) -> None:
    whole = base_model() | config() | files
    model = described(without(whole, "model.safetensors") if SHARDS_INDEX in files else whole)
    assert (model["framework"], model["runtime_compatible"], model["reason"]) == ("MLX", True, None)


@pytest.mark.parametrize("files", NOT_LOADED.values(), ids=NOT_LOADED)
def test_weights_that_mlx_lm_cannot_load_are_pytorch(described: Describe, files: Files) -> None:
    model = described(base_model() | config() | files)
    assert (model["framework"], model["health"]) == ("PyTorch", "healthy")


@pytest.mark.parametrize("name", OTHER_WEIGHTS.values(), ids=OTHER_WEIGHTS)
def test_weights_with_other_file_names_are_pytorch(described: Describe, name: str) -> None:
    files = without(base_model() | config(), "model.safetensors") | {name: weights(mlx=False)}
    assert described(files)["framework"] == "PyTorch"


# ---------------------------------------------------------------------------------------------------------------- type


BERT = config(model_type="bert", architectures=["BertModel"])
VISION = config(model_type="vit", architectures=["ViTForImageClassification"])
TYPES = [
    ("org/x", chat_model(), "chat"),
    ("org/x", base_model(), "base"),
    ("org/x", base_model() | {"chat_template.jinja": b"{{ messages }}"}, "chat"),
    ("org/x", base_model() | {"chat_template.json": b'{"chat_template": "{{ messages }}"}'}, "chat"),
    ("org/x", base_model() | {"tokenizer_config.json": b'{"chat_template": [{"name": "a"}]}'}, "chat"),
    ("org/x", base_model() | {"tokenizer_config.json": b'{"chat_template": null}'}, "base"),
    ("org/x", base_model() | {"tokenizer_config.json": b'{"chat_template": ""}'}, "base"),
    ("org/x", base_model() | {"tokenizer_config.json": rb'{"x": "\"chat_template\": \"y\""}'}, "base"),
    ("org/x", base_model() | {"tokenizer_config.json": b"{"}, "base"),
    ("org/x-Instruct", base_model(), "chat"),
    ("org/x-CHAT-4bit", base_model(), "chat"),
    ("org/text-embedding-3", base_model(), "embedding"),
    ("org/text-embedding-3", chat_model(), "embedding"),
    ("org/x", base_model() | BERT, "embedding"),
    ("org/x", base_model() | {"README.md": card("pipeline_tag: feature-extraction")}, "embedding"),
    ("org/x", base_model() | {"README.md": card("pipeline_tag: sentence-similarity")}, "embedding"),
    ("org/x", base_model() | {"README.md": card("pipeline_tag: text-generation")}, "base"),
    ("org/x", base_model() | config(architectures=["GPT2LMHeadModel"]), "base"),
    ("org/x", base_model() | VISION, "unknown"),
    ("org/x", base_model() | config(architectures=None), "unknown"),
    ("org/x", base_model() | config(architectures="LlamaForCausalLM"), "unknown"),
    ("org/x", base_model() | config(architectures=[1, None, {}]), "unknown"),
    ("org/x", gguf_model(), "unknown"),
]
CAPABILITIES = {
    "chat": ["text-generation", "chat"],
    "base": ["text-generation", "completion"],
    "embedding": ["embeddings"],
    "unknown": [],
}


@pytest.mark.parametrize(("name", "files", "model_type"), TYPES)
def test_the_model_type_depends_on_config_card_template_and_name(
    described: Describe, name: str, files: Files, model_type: str
) -> None:
    model = described(files, name)
    assert model["model_type"] == model_type
    assert model["capabilities"] == CAPABILITIES[model_type]


def test_the_tokenizer_file_is_never_parsed(described: Describe) -> None:
    broken = b'{"model": {"vocab": ' + b"[" * 100_000 + b"}"
    assert described(chat_model() | {"tokenizer.json": broken})["health"] == "healthy"


@pytest.mark.parametrize("padding", [0, 5_000_000])
def test_a_template_is_found_in_a_large_tokenizer_config(described: Describe, padding: int) -> None:
    large = as_json({"added": "x" * padding}).rstrip(b"}") + b"," + TOKENIZER_CONFIG.lstrip(b"{")
    assert described(base_model() | {"tokenizer_config.json": large})["model_type"] == "chat"


# --------------------------------------------------------------------------------------------------- hostile YAML cards

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 500)) + "tags: *a499"
HOSTILE_CARDS = {
    "lists in lists": card("tags: " + "[" * 60_000),
    "lists in lists, closed": card("tags: " + "[" * 20_000 + "]" * 20_000),
    "dashes in dashes": card("tags:\n" + "- " * 30_000),
    "maps in maps": card("{tags: " * 8_000),
    "keys in keys": card("? " * 30_000),
    "aliases of aliases": card(BOMB),
    "an alias of itself": card("tags: &mlx [*mlx]"),
    "a merge of itself": card("tags: &mlx\n  <<: *mlx"),
    "a merge": card("<<: {library_name: [mlx]}"),
    "a list for a key": card("? [mlx]\n: x"),
    "a tag that runs": card("tags: !!python/object/apply:os.system ['exit 1']"),
    "NUL": card("tags: \0mlx"),
    "one long line": card("tags: mlx" + "x" * 70_000),
    "many anchors": card("tags: [" + ", ".join(f"&a{i} mlx{i}" for i in range(5_000)) + "]"),
    "binary": bytes(range(256)) * 200,
    "100,000 tags": card("tags:\n" + "- mlx\n" * 100_000),
    "long lines of blanks": card(("tags" + " " * 99_000 + "\n") * 10),
    "keys without end": card("mlx:\n" * 190_000),
    "past the limit": card("x: y\n" * 300_000 + "tags: mlx"),
}


@pytest.mark.parametrize("readme", HOSTILE_CARDS.values(), ids=HOSTILE_CARDS)
@pytest.mark.timeout(20)
def test_a_hostile_card_is_ignored(described: Describe, readme: bytes) -> None:
    model = described(base_model() | {"README.md": b"---\nmlx: feature-extraction\n" + readme.removeprefix(b"---\n")})
    assert (model["framework"], model["health"]) == ("PyTorch", "healthy")
