"""Make the models for measuring generation: `python benchmarks/small_models.py FOLDER`.

A Llama of 98 million random parameters, once in float32 and once in 4 bits with bfloat16 scales. Its tokens are groups
of letters, and it never chooses an end token. So any two programs generate the same number of tokens, and each token is
visible when it comes.
"""

from __future__ import annotations

import json
import string
import sys
from itertools import islice, product
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

VOCABULARY = 8192
QUANTIZATION = {"group_size": 64, "bits": 4}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
    "eos_token_id": VOCABULARY - 1,
}


def build(folder: Path) -> None:
    """Write both models into the folders `float32` and `4bit` below this folder."""
    tokenizer = _tokenizer()
    speakable = [number for token, number in tokenizer.get_vocab().items() if set(token) <= set(string.ascii_letters)]
    mx.random.seed(0)
    model = Model(ModelArgs.from_dict(CONFIG))
    is_speakable = mx.zeros(VOCABULARY).at[mx.array(speakable)].add(1.0)
    model.lm_head.weight = model.lm_head.weight * is_speakable[:, None]
    _write(folder / "float32", model, tokenizer, CONFIG)
    model.update(tree_map(lambda array: array.astype(mx.bfloat16), model.parameters()))
    nn.quantize(model, **QUANTIZATION)
    _write(folder / "4bit", model, tokenizer, CONFIG | {"quantization": QUANTIZATION})


def _tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer whose merges are pairs and triples of letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(product(string.ascii_lowercase, string.ascii_lowercase))
    triples = product(("".join(pair) for pair in pairs), string.ascii_lowercase)
    merges = [*pairs, *islice(triples, VOCABULARY - len(alphabet) - len(pairs) - len(SPECIAL))]
    tokens = [*alphabet, *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _write(folder: Path, model: nn.Module, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[-1], "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


if __name__ == "__main__":
    build(Path(sys.argv[1]))
