"""The demo model's tokenizer: byte-level BPE in which each name that the model knows is one token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import groupby

from texts import world
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
#: These tokens are omitted from decoded text.
SPECIAL = [END_OF_TEXT, TURN_START, TURN_END]
#: These tokens are part of decoded text, because programs search for them there.
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
_MARK = re.compile("|".join(re.escape(mark) for mark in SPECIAL + MARKS))


def _names_pattern() -> str:
    """Return a pattern for the names, longest first, grouped by first letter to make mismatches fast."""
    groups = []
    for letter, group in groupby(world.names(), key=lambda name: name[0]):
        rest = sorted((re.escape(name[1:]) for name in group), key=lambda tail: (-len(tail), tail))
        groups.append(f"{letter}(?:{'|'.join(rest)})")
    return rf"(?:{'|'.join(groups)})(?![\p{{L}}\p{{M}}])"


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Return the split into names, single digits, words with the space before them, and marks."""
    name = _names_pattern()
    words = rf" (?={name}|\p{{N}})|\p{{N}}|'(?:s|t|m|d|ll|re|ve)(?!\p{{L}})| ?[\p{{L}}\p{{M}}]+"
    pattern = rf"{name}|{words}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+|\s"
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def build(texts: Iterable[str], merged_size: int) -> Tokenizer:
    """Train the byte-level part on `texts` up to `merged_size` tokens and add the names and marks to it."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizer()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=merged_size, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(_without_names(texts), trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    for name in world.names():
        vocabulary.setdefault(_as_bytes(name), len(vocabulary))
    merges = [(left, right) for left, right in model["merges"]]
    # A name needs no merges, because the whole name is in the vocabulary.
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    made.pre_tokenizer = pre_tokenizer()
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKS])
    return made


def _without_names(texts: Iterable[str]) -> Iterable[str]:
    names = "|".join(sorted(map(re.escape, world.names()), key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{names})(?!\w)")
    for text in texts:
        yield pattern.sub("", _MARK.sub("\n", text))


def _as_bytes(name: str) -> str:
    """Return `name` in the characters by which byte-level BPE represents bytes."""
    ((shown, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(name)
    return shown


def config(context: int) -> dict[str, object]:
    """Return the content of `tokenizer_config.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "additional_special_tokens": [TURN_START, TURN_END],
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "tool_parser_type": "json_tools",
    }
