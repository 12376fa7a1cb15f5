"""Build tiny real models: chains, which write the tokens that a test names, and random ones of any architecture.

A chain is a llama whose layers do nothing: embeddings are one-hot, and the output matrix maps every token to those that
may follow it, all equally likely. The next token depends only on the last one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END = "<|im_end|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# How ByteLevel tokenizers write a space and a line end.
SPACE, NEWLINE = "Ġ", "Ċ"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Endless: every letter, and the line end before an answer, is followed by any letter.
BABBLE: dict[str, Sequence[str]] = {token: LETTERS for token in (*LETTERS, NEWLINE)}

_LIKELY = 60.0


def write_tokenizer(
    folder: Path,
    *,
    template: str | None = CHATML,
    words: Sequence[str] = (),
    special: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> Tokenizer:
    """Write a byte-level tokenizer that encodes single bytes and can also decode `words`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*alphabet, *words]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", END, *special)])
    tokenizer.add_tokens([AddedToken(t, special=False) for t in ("<think>", "</think>")])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "chat_template": template}
    settings = {key: value for key, value in {**settings, **(config or {})}.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer


def write_chain(folder: Path, follows: Mapping[str, Sequence[str]], *, context: int = 512, **options: Any) -> Path:
    """Write a chain model: `follows` lists the tokens that may follow a token; after others comes the end."""
    tokens = dict.fromkeys(token for entry in follows.items() for token in (entry[0], *entry[1]))
    tokenizer = write_tokenizer(folder, words=[t for t in tokens if not t.startswith("<")], **options)
    numbers = tokenizer.get_vocab()
    size = tokenizer.get_vocab_size() + tokenizer.get_vocab_size() % 2
    config = _llama(size, context) | {"hidden_size": size, "eos_token_id": tokenizer.token_to_id(END)}
    model = _build(config)
    output = [[0.0] * size for _ in range(size)]
    for token, number in numbers.items():
        for successor in follows.get(token, [END]):
            output[numbers[successor]][number] = _LIKELY / size**0.5
    weights = {
        name: mx.ones(array.shape) if "norm" in name else mx.zeros(array.shape)
        for name, array in tree_flatten(model.parameters())
    }
    weights |= {"model.embed_tokens.weight": mx.eye(size), "lm_head.weight": mx.array(output)}
    return _save(folder, config, weights)


def say(*tokens: str, after: str = NEWLINE) -> dict[str, Sequence[str]]:
    """Return the chain that writes these tokens, each a different one, after the prompt's last one, and ends."""
    return {last: [token] for last, token in zip((after, *tokens), (*tokens, END), strict=True)}


def write_random(folder: Path, architecture: Mapping[str, Any], **options: Any) -> Path:
    """Write a model of any architecture with random weights."""
    tokenizer = write_tokenizer(folder, **options)
    size = tokenizer.get_vocab_size()
    config = {"vocab_size": size, "eos_token_id": tokenizer.token_to_id(END), **architecture}
    if "text_config" in config:
        config["text_config"] = {**config["text_config"], "vocab_size": size}
    mx.random.seed(7)
    return _save(folder, config, dict(tree_flatten(_build(config).parameters())))


def write_adapter(folder: Path, size: int) -> Path:
    """Write a LoRA adapter for a chain with a vocabulary of that size."""
    lora = {"rank": 2, "scale": 1.0, "dropout": 0.0, "keys": ["mlp.up_proj"]}
    settings = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": lora}
    weights = {
        "model.layers.0.mlp.up_proj.lora_a": mx.ones((size, 2)),
        "model.layers.0.mlp.up_proj.lora_b": mx.ones((2, 4)),
    }
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    return folder


def _llama(size: int, context: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": size,
        "num_hidden_layers": 1,
        "intermediate_size": 4,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
    }


def _build(config: Mapping[str, Any]) -> Any:
    model_class, arguments = _get_classes(dict(config))
    return model_class(arguments.from_dict(dict(config)))


def _save(folder: Path, config: Mapping[str, Any], weights: dict[str, mx.array]) -> Path:
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder
