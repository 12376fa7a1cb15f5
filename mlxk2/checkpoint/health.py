"""The rules of health: whether a model's files are whole. Strict: what is called healthy, is.

Each rule looks at a snapshot's contents and returns the first problem it finds, or None. They are asked in order.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from mlxk2.checkpoint import gguf
from mlxk2.checkpoint.files import BrokenFile, File, check_size
from mlxk2.checkpoint.snapshot import IS_LFS_POINTER, MAX_TOKENIZER_CONFIG_BYTES, Contents

HEALTHY = "Model is healthy"
MAX_NAMED = 5  # of the missing parts: what a file's name says may be a hundred thousand

PARTIAL = (".partial", ".tmp", ".incomplete")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json", "vocab.txt")

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<ending>safetensors|bin|gguf)")

Rule = Callable[[Contents], str | None]


def first_problem(contents: Contents, needs_tokenizer: bool) -> str | None:
    """The first reason why a model is unhealthy, or None; no weight is read for it."""
    rules = (*RULES, has_tokenizer) if needs_tokenizer else RULES
    try:
        return next((problem for rule in rules if (problem := rule(contents))), None)
    except BrokenFile as error:
        return str(error)


def is_weight(name: str) -> bool:
    """Whether a file of this name holds a model's weights (`training_args.bin` and the like do not)."""
    base = name.rpartition("/")[2]
    return base.endswith((".safetensors", ".gguf")) or (
        base.startswith("pytorch_model") and base.endswith(".bin")
    )


def weight_names(contents: Contents) -> list[str]:
    """The names of the files that hold a model's weights."""
    return [file.name for file in contents.files if is_weight(file.name)]


def has_snapshot(contents: Contents) -> str | None:
    """Rule 1: there is a snapshot, it is inside the cache, not empty, and each of its links leads to a file."""
    if contents.snapshot.problem:
        return contents.snapshot.problem
    if contents.snapshot.is_missing:
        return "No snapshot: the model was never downloaded completely"
    if not contents.is_inside:
        return "The snapshot is a link that leads outside the cache"
    if not contents.files:
        return "The folder has no files of a model" if contents.snapshot.roots is None else "The snapshot is empty"
    return next((why_unreadable(file) for file in contents.files if file.problem), None)


def why_unreadable(file: File) -> str:
    """Return what is wrong with a file that has a problem."""
    return f"{'its folder' if file.name == '.' else file.name} {file.problem}"


def has_config(contents: Contents) -> str | None:
    """Rule 2: config.json is a JSON object with content; a repo of GGUF files alone needs none."""
    if "config.json" not in contents and _is_gguf_alone(contents):
        return None
    return str(contents.config) if isinstance(contents.config, BrokenFile) else None


def _is_gguf_alone(contents: Contents) -> bool:
    weights = weight_names(contents)
    return bool(weights) and all(name.endswith(".gguf") for name in weights)


def has_weights(contents: Contents) -> str | None:
    """Rules 3 and 4: every shard of the index is there; without one, the weights are whole by themselves."""
    index = index_name(contents)
    if index and not is_stale(contents, index):
        problem = _problem_of_index(contents, index)
    else:
        problem = _problem_without_index(contents)
    return problem or _problem_of_gguf_parts(contents)


def index_name(contents: Contents) -> str | None:
    """The name of the index that says in which files the weights are; None where there is none."""
    if "model.safetensors.index.json" in contents:
        return "model.safetensors.index.json"
    has_safetensors = any("/" not in file.name for file in contents.named(".safetensors"))
    name = "pytorch_model.bin.index.json"
    return name if name in contents and not has_safetensors else None


def _problem_of_index(contents: Contents, index: str) -> str | None:
    problems = (_problem_of_shard(contents, index, shard) for shard in contents.shards_of(index))
    return next(filter(None, problems), None)


def missing_shards(contents: Contents) -> list[str]:
    """The shards that the index names and that are not there; BrokenFile when the index can't be read."""
    index = index_name(contents)
    shards = contents.shards_of(index) if index and not is_stale(contents, index) else []
    return [shard for shard in shards if not _leads_out(shard) and shard not in contents]


def is_stale(contents: Contents, index: str) -> bool:
    """Whether an index is of another numbering than the weights that are here, and so says nothing about them.

    A conversion often keeps the index of the model that it was made from. mlx-lm reads `model*.safetensors` and no
    index. An index of which one file is here, or that has the numbering of a file that is here, is not stale.
    """
    stem, _, ending = index.removesuffix(".index.json").rpartition(".")
    named = [_numbering(shard, stem, ending) for shard in contents.shards_of(index)]
    present = {_numbering(file.name, stem, ending) for file in contents.files} - {None}
    return bool(present) and None not in named and present.isdisjoint(named)


def _numbering(name: str, stem: str, ending: str) -> str | None:
    """Of how many parts a weight file of this stem and ending is one, "" for a whole; None for any other file."""
    if name == f"{stem}.{ending}":
        return ""
    match = _SHARD.fullmatch(name)
    return match["count"] if match and (match["stem"], match["ending"]) == (stem, ending) else None


def warnings(contents: Contents) -> list[str]:
    """Return what is odd about the weights of a healthy model, though nothing of them is missing."""
    index = index_name(contents)
    if index and is_stale(contents, index):
        named = contents.shards_of(index)[0]
        return [f"{index} is of other weights than those here: it names {named}. mlx-lm does not read it"]
    lone = [index for index, _, count in _parts(_weights_at_the_top(contents)) if count > 1 and index not in contents]
    return [f"{index} is missing; the shards are complete by their numbers" for index in lone]


def _leads_out(shard: str) -> bool:
    return shard.startswith("/") or "\\" in shard or ".." in shard.split("/")


def _problem_of_shard(contents: Contents, index: str, shard: str) -> str | None:
    if _leads_out(shard):
        return f"{index} names a path outside the snapshot: {shard!r}"
    file = contents.file(shard)
    if file is None:
        return f"Missing shard: {shard}"
    return _problem_of_size(contents, file)


def _problem_of_size(contents: Contents, file: File) -> str | None:
    if file.size == 0:
        return f"{file.name} is empty"
    if file.name in contents.lfs_pointers:
        return f"{file.name} {IS_LFS_POINTER}"
    return None


def _problem_without_index(contents: Contents) -> str | None:
    if not weight_names(contents):
        return "No weight files"
    parts = _parts(_weights_at_the_top(contents))
    problems = (_problem_of_shards(contents, index, missing) for index, missing, _ in parts)
    return next(filter(None, problems), None)


def _weights_at_the_top(contents: Contents) -> list[str]:
    return [name for name in weight_names(contents) if "/" not in name and not name.endswith(".gguf")]


def _problem_of_shards(contents: Contents, index: str, missing: list[str]) -> str | None:
    if index in contents and not is_stale(contents, index):
        return _problem_of_index(contents, index)
    return f"Missing shards: {', '.join(missing)}" if missing else None


def _problem_of_gguf_parts(contents: Contents) -> str | None:
    for _, missing, _ in _parts([file.name for file in contents.named(".gguf")]):
        if missing:
            return f"Missing parts: {', '.join(missing)}"
    return None


def missing_parts(names: Iterable[str]) -> list[str]:
    """Of files that come in numbered parts, the first parts that are not among these names."""
    return [part for _, missing, _ in _parts(names) for part in missing]


def _parts(names: Iterable[str]) -> Iterator[tuple[str, list[str], int]]:
    """For each file that comes in parts (`stem-00001-of-00003.ending`) its index, the first parts not there, and how
    many parts there should be.
    """
    groups: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for name in names:
        if match := _SHARD.fullmatch(name):
            groups[match["stem"], match["count"], match["ending"]].add(int(match["number"]))
    for (stem, count, ending), numbers in sorted(groups.items()):
        missing = (number for number in range(1, int(count) + 1) if number not in numbers)
        names = (f"{stem}-{number:05}-of-{count}.{ending}" for number in missing)
        yield f"{stem}.{ending}.index.json", list(islice(names, MAX_NAMED)), int(count)


def has_whole_weights(contents: Contents) -> str | None:
    """Rules 5 and 6 for weights: none is empty or a pointer, each is as long as its own header says."""
    for file in contents.files:
        if is_weight(file.name) and (problem := _problem_of_size(contents, file)):
            return problem
    for found in contents.safetensors.values():
        if isinstance(found, BrokenFile):
            return str(found)
    for file in contents.named(".gguf"):
        gguf.check(file)
    return None


def has_only_finished_files(contents: Contents) -> str | None:
    """Rule 6: no Git LFS pointer anywhere, and no file of an unfinished download."""
    if contents.lfs_pointers:
        return f"{min(contents.lfs_pointers)} {IS_LFS_POINTER}"
    partial = contents.named(*PARTIAL)
    return f"Unfinished download: {partial[0].name}" if partial else None


def has_tokenizer(contents: Contents) -> str | None:
    """Rule 7: a tokenizer with content is there; a repo of GGUF files alone carries it in them."""
    if _is_gguf_alone(contents):
        return None
    if config := contents.file("tokenizer_config.json"):
        check_size(config, MAX_TOKENIZER_CONFIG_BYTES)
    files = [file for file in contents.files if file.name in TOKENIZERS or file.name.endswith(".tiktoken")]
    if "merges.txt" in contents:
        files += filter(None, [contents.file("vocab.json")])
    if any(file.size for file in files):
        return None
    if files:
        return f"{files[0].name} is empty"
    return f"No tokenizer ({', '.join(TOKENIZERS)}, *.tiktoken, or vocab.json with merges.txt)"


RULES: tuple[Rule, ...] = (has_snapshot, has_config, has_weights, has_whole_weights, has_only_finished_files)
