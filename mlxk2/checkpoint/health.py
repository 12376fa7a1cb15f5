"""The rules of health: they check that a model's files are complete and undamaged, without reading a weight.

Each rule returns the first problem that it finds in a snapshot, or None. The rules are applied in order.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from mlxk2.checkpoint import gguf
from mlxk2.checkpoint.files import BrokenFile, File, check_size, open_file
from mlxk2.checkpoint.snapshot import IS_LFS_POINTER, MAX_TOKENIZER_CONFIG_BYTES, Snapshot

HEALTHY = "Model is healthy"
MAX_NAMED = 5  # Missing parts in a message; a damaged name can claim a hundred thousand parts.

PARTIAL = (".partial", ".tmp", ".incomplete")
# Parsing these files takes too long for a list of many models, but a truncated file is recognized by its end.
TOKENIZER_JSON = ("tokenizer.json", "tokenizer_config.json")
EDGE_BYTES = 1024
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json", "vocab.txt")

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<ending>safetensors|bin|gguf)")


class Problem(NamedTuple):
    """Why a model is unhealthy: a text for people, and the name of the broken file if it is only one.

    `is_refused` is true when the operating system does not let the user read some file; the model can still be
    complete.
    """

    text: str
    file: str | None = None
    is_refused: bool = False


Rule = Callable[[Snapshot], Problem | None]


def apply(rule: Rule, snapshot: Snapshot) -> Problem | None:
    """Return the first problem that a rule finds in a snapshot, or None; an unreadable file is a problem too."""
    try:
        return rule(snapshot)
    except BrokenFile as error:
        return _problem_of(error)


def _problem_of(error: BrokenFile) -> Problem:
    return Problem(str(error), error.name, error.is_refused)


def first_problem(snapshot: Snapshot, needs_tokenizer: bool) -> Problem | None:
    """Return the first reason why a model is unhealthy, or None."""
    rules = (*RULES, *TOKENIZER_RULES) if needs_tokenizer else RULES
    found = next((problem for rule in rules if (problem := apply(rule, snapshot))), None)
    if found is None:
        return None
    is_refused = found.is_refused or bool(snapshot.problem) or any(file.is_refused for file in snapshot.files)
    return found._replace(is_refused=is_refused)


def is_weight(name: str) -> bool:
    """Return whether a file of this name holds a model's weights; for example, `training_args.bin` does not."""
    base = name.rpartition("/")[2]
    return base.endswith((".safetensors", ".gguf")) or (base.startswith("pytorch_model") and base.endswith(".bin"))


def weight_names(snapshot: Snapshot) -> list[str]:
    """Return the names of the files that hold a model's weights."""
    return [file.name for file in snapshot.files if is_weight(file.name)]


def has_snapshot(snapshot: Snapshot) -> Problem | None:
    """Rule 1: the snapshot exists, is inside the cache, is not empty, and each of its links leads to a file."""
    if snapshot.problem:
        return Problem(snapshot.problem)
    if snapshot.is_missing:
        return Problem("No snapshot: the model was never downloaded completely")
    if not snapshot.is_inside:
        return Problem("The snapshot is a link that leads outside the cache")
    if not snapshot.files:
        return Problem("The folder has no files of a model" if snapshot.roots is None else "The snapshot is empty")
    return next((Problem(why_unreadable(file), file.name) for file in snapshot.files if file.problem), None)


def why_unreadable(file: File) -> str:
    """Return what is wrong with a file that has a problem."""
    return f"{'its folder' if file.name == '.' else file.name} {file.problem}"


def has_config(snapshot: Snapshot) -> Problem | None:
    """Rule 2: config.json is a JSON object with content; a repo of GGUF files alone needs none."""
    if "config.json" not in snapshot and _is_gguf_alone(snapshot):
        return None
    return _problem_of(snapshot.config) if isinstance(snapshot.config, BrokenFile) else None


def _is_gguf_alone(snapshot: Snapshot) -> bool:
    weights = weight_names(snapshot)
    return bool(weights) and all(name.endswith(".gguf") for name in weights)


def has_weights(snapshot: Snapshot) -> Problem | None:
    """Rules 3 and 4: every shard in the index exists; without an index, every part by the numbers in the names."""
    index = index_name(snapshot)
    if index and not is_stale(snapshot, index):
        if problem := _problem_of_index(snapshot, index):
            return problem
    elif not weight_names(snapshot):
        return Problem("No weight files")
    else:
        for inner, missing, _ in _parts(_weights_at_the_top(snapshot)):
            if inner in snapshot and not is_stale(snapshot, inner):
                if problem := _problem_of_index(snapshot, inner):
                    return problem
            elif missing:
                return Problem(f"Missing shards: {', '.join(missing)}")
    missing = missing_parts(file.name for file in snapshot.files_ending(".gguf"))
    return Problem(f"Missing parts: {', '.join(missing)}") if missing else None


def index_name(snapshot: Snapshot) -> str | None:
    """Return the name of the index, which lists the files of the weights, or None."""
    if "model.safetensors.index.json" in snapshot:
        return "model.safetensors.index.json"
    has_safetensors = any("/" not in file.name for file in snapshot.files_ending(".safetensors"))
    name = "pytorch_model.bin.index.json"
    return name if name in snapshot and not has_safetensors else None


def _problem_of_index(snapshot: Snapshot, index: str) -> Problem | None:
    for shard in snapshot.shards_of(index):
        if _leads_out(shard):
            return Problem(f"{index} names a path outside the snapshot: {shard!r}", index)
        file = snapshot.file(shard)
        if file is None:
            return Problem(f"Missing shard: {shard}", shard)
        if problem := _problem_of_size(snapshot, file):
            return problem
    return None


def missing_shards(snapshot: Snapshot) -> list[str]:
    """Return the shards in the index whose files are missing; raise BrokenFile when the index can't be read."""
    index = index_name(snapshot)
    shards = snapshot.shards_of(index) if index and not is_stale(snapshot, index) else []
    return [shard for shard in shards if not _leads_out(shard) and shard not in snapshot]


def is_stale(snapshot: Snapshot, index: str) -> bool:
    """Return whether an index belongs to other weights than those in the snapshot, judged by the numbers in the names.

    A converted model often keeps the index of its original. That is harmless, since mlx-lm reads `model*.safetensors`
    and no index. An index is not stale if the snapshot has one of its files, or a file with the same numbering.
    """
    stem, _, ending = index.removesuffix(".index.json").rpartition(".")
    named = [_numbering(shard, stem, ending) for shard in snapshot.shards_of(index)]
    present = {_numbering(file.name, stem, ending) for file in snapshot.files} - {None}
    return bool(present) and None not in named and present.isdisjoint(named)


def _numbering(name: str, stem: str, ending: str) -> str | None:
    """Return the number of parts in the name of a weight file; "" for a file without parts, None for other names."""
    if name == f"{stem}.{ending}":
        return ""
    match = _SHARD.fullmatch(name)
    return match["count"] if match and (match["stem"], match["ending"]) == (stem, ending) else None


def warnings(snapshot: Snapshot) -> list[str]:
    """Return warnings about the weights of a healthy model: a stale index, or a missing one."""
    index = index_name(snapshot)
    if index and is_stale(snapshot, index):
        named = snapshot.shards_of(index)[0]
        return [f"{index} belongs to other weights: it names {named}. mlx-lm does not read it"]
    lone = [index for index, _, count in _parts(_weights_at_the_top(snapshot)) if count > 1 and index not in snapshot]
    return [f"{index} is missing, but the numbers of the shards are complete" for index in lone]


def _leads_out(shard: str) -> bool:
    return shard.startswith("/") or "\\" in shard or ".." in shard.split("/")


def _problem_of_size(snapshot: Snapshot, file: File) -> Problem | None:
    if file.size == 0:
        return Problem(f"{file.name} is empty", file.name)
    if file.name in snapshot.lfs_pointers:
        return Problem(f"{file.name} {IS_LFS_POINTER}", file.name)
    return None


def _weights_at_the_top(snapshot: Snapshot) -> list[str]:
    return [name for name in weight_names(snapshot) if "/" not in name and not name.endswith(".gguf")]


def missing_parts(names: Iterable[str]) -> list[str]:
    """Return missing parts of the first incomplete file in numbered parts, at most `MAX_NAMED` of them."""
    return next((missing for _, missing, _ in _parts(names) if missing), [])


def _parts(names: Iterable[str]) -> Iterator[tuple[str, list[str], int]]:
    """Yield for each file in numbered parts (`stem-00001-of-00003.ending`): its index, missing parts, number of parts.

    The missing parts are at most `MAX_NAMED`.
    """
    groups: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for name in names:
        if match := _SHARD.fullmatch(name):
            groups[match["stem"], match["count"], match["ending"]].add(int(match["number"]))
    for (stem, count, ending), numbers in sorted(groups.items()):
        missing = (number for number in range(1, int(count) + 1) if number not in numbers)
        names = (f"{stem}-{number:05}-of-{count}.{ending}" for number in missing)
        yield f"{stem}.{ending}.index.json", list(islice(names, MAX_NAMED)), int(count)


def has_whole_weights(snapshot: Snapshot) -> Problem | None:
    """Rules 5 and 6 for weights: no file is empty or a Git LFS pointer, and each has the size that its header needs."""
    for file in snapshot.files:
        if is_weight(file.name) and (problem := _problem_of_size(snapshot, file)):
            return problem
    for found in snapshot.safetensors.values():
        if isinstance(found, BrokenFile):
            return _problem_of(found)
    for file in snapshot.files_ending(".gguf"):
        gguf.check(file)
    return None


def has_only_finished_files(snapshot: Snapshot) -> Problem | None:
    """Rule 6: the snapshot has no Git LFS pointer and no file of an unfinished download."""
    if snapshot.lfs_pointers:
        pointer = min(snapshot.lfs_pointers)
        return Problem(f"{pointer} {IS_LFS_POINTER}", pointer)
    partial = snapshot.files_ending(*PARTIAL)
    return Problem(f"Unfinished download: {partial[0].name}", partial[0].name) if partial else None


def has_tokenizer(snapshot: Snapshot) -> Problem | None:
    """Rule 7: the snapshot has a tokenizer that is not empty; GGUF files contain their own."""
    if _is_gguf_alone(snapshot):
        return None
    if config := snapshot.file("tokenizer_config.json"):
        check_size(config, MAX_TOKENIZER_CONFIG_BYTES)
    files = [file for file in snapshot.files if file.name in TOKENIZERS or file.name.endswith(".tiktoken")]
    if "merges.txt" in snapshot:
        files += filter(None, [snapshot.file("vocab.json")])
    if any(file.size for file in files):
        return None
    if files:
        return Problem(f"{files[0].name} is empty", files[0].name)
    return Problem(f"No tokenizer ({', '.join(TOKENIZERS)}, *.tiktoken, or vocab.json with merges.txt)")


def has_whole_tokenizer(snapshot: Snapshot) -> Problem | None:
    """Rule 7 for tokenizers in JSON: each file begins and ends like a JSON object."""
    if _is_gguf_alone(snapshot):
        return None
    for file in filter(None, map(snapshot.file, TOKENIZER_JSON)):
        with open_file(file) as current:
            begin = current.read(EDGE_BYTES).lstrip()
            end = current.read(EDGE_BYTES, max(0, current.file.size - EDGE_BYTES)).rstrip()
        if not (begin.startswith(b"{") and end.endswith(b"}")):
            return Problem(f"{file.name} is cut off, or is not a JSON object", file.name)
    return None


RULES: tuple[Rule, ...] = (has_snapshot, has_config, has_weights, has_whole_weights, has_only_finished_files)
# Only for models that generate text.
TOKENIZER_RULES: tuple[Rule, ...] = (has_tokenizer, has_whole_tokenizer)
