"""Write the demo model's folder, and check that the chat template renders talks as they were trained."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import jinja2
import tokenizer as vocabulary
from network import Network
from safetensors.torch import save_file
from talks import Talk
from tokenizers import Tokenizer

TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def make_tokenizer(talks: list[Talk], merged_size: int) -> Tokenizer:
    """Train the tokenizer on the texts of `talks`."""
    return vocabulary.build(("".join(piece.text for piece in talk.pieces) for talk in talks), merged_size)


def check_template(talks: list[Talk]) -> None:
    """Raise AssertionError unless the chat template renders the talks as they are trained."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    for talk in talks:
        if not talk.messages:
            continue
        rendered = template.render(messages=talk.messages[:-1], tools=talk.tools, add_generation_prompt=True)
        # The last answer can contain reasoning, which the template omits from the history.
        expected = "".join(piece.text for piece in talk.pieces[:-2])
        assert rendered == expected, f"{rendered!r} is not {expected!r}"


def write_folder(folder: Path, network: Network, tokenizer: Tokenizer) -> None:
    """Write all files except the card into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": value.detach().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "mlx"})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    shutil.copyfile(TEMPLATE, folder / "chat_template.jinja")
    ends = [tokenizer.token_to_id(vocabulary.TURN_END), tokenizer.token_to_id(vocabulary.END_OF_TEXT)]
    shape = asdict(network.shape)
    shared = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **shape,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": ends,
        "pad_token_id": ends[1],
    }
    generation = {"do_sample": False, "eos_token_id": ends, "pad_token_id": ends[1]}
    _write_json(folder / "config.json", shared)
    _write_json(folder / "generation_config.json", generation)
    context = network.shape.max_position_embeddings
    _write_json(folder / "tokenizer_config.json", vocabulary.config(context))


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
