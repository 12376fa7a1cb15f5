"""`show`: show one model in detail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from mlxk2 import names
from mlxk2.cache.store import Cache, find_cache_dir
from mlxk2.checkpoint import health
from mlxk2.checkpoint.describe import find_and_describe, read_metadata
from mlxk2.checkpoint.snapshot import TEMPLATE_FILES
from mlxk2.formatting import human_size
from mlxk2.spec import FileEntry, ShowData, metadata_object, model_object

if TYPE_CHECKING:
    from mlxk2.commands.context import Context

FileType = Literal["config", "weights", "tokenizer", "readme", "other"]

_TOKENIZER_FILES = {*health.TOKENIZERS, *TEMPLATE_FILES, "tokenizer_config.json", "special_tokens_map.json"}
_TOKENIZER_FILES |= {"added_tokens.json", "vocab.json", "merges.txt"}
_CONFIG_ENDINGS = ("config.json", "params.json", ".index.json")


class Options(NamedTuple):
    """The model to show, and whether to show its files and its config too."""

    model: str
    files: bool
    config: bool


def run(options: Options, context: Context) -> ShowData:
    """Return the model object and its metadata, and on request its files and its config."""
    cache = Cache(find_cache_dir(context.environment))
    ref = names.parse(options.model)
    snapshot, info = find_and_describe(lambda: cache.resolve(ref))
    data: ShowData = {"model": model_object(info), "metadata": metadata_object(read_metadata(snapshot))}
    if info.is_healthy:
        for warning in health.warnings(snapshot):
            context.streams.warn(f"{warning}.")
    if options.files:
        data["files"] = [
            FileEntry(name=file.name, size=human_size(file.size), type=_type_of(file.name)) for file in snapshot.files
        ]
    if options.config:
        data["config"] = snapshot.config_or_empty or None
    return data


def _type_of(name: str) -> FileType:
    """Return the type of a file, judged by its name."""
    base = name.rpartition("/")[2]
    if base in _TOKENIZER_FILES or base.endswith(".tiktoken"):
        return "tokenizer"
    if health.is_weight(name):
        return "weights"
    if base.lower().startswith("readme"):
        return "readme"
    return "config" if base.endswith(_CONFIG_ENDINGS) else "other"
