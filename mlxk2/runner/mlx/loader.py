"""Load a model into memory: weights from safetensors only, no code of the repo, no network."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import load_adapters, load_config, load_model

from mlxk2.checkpoint import health
from mlxk2.checkpoint.context import context_length
from mlxk2.checkpoint.snapshot import Contents, Snapshot
from mlxk2.errors import (
    ModelError,
    ModelNotFoundError,
    ModelNotRunnableError,
    ModelUnhealthyError,
    OperationError,
    ValidationError,
    cause,
    reason_of,
)
from mlxk2.fence import fenced
from mlxk2.runner.mlx import cpu, memory
from mlxk2.runner.mlx.batch import Batch, Queue, can_batch
from mlxk2.runner.output.text import Vocabulary
from mlxk2.runner.prompt.confined import Cancelled, Starter
from mlxk2.runner.prompt.tokenizer import Tokenizer, load_tokenizer, token_ids
from mlxk2.runner.prompt.tokenizer_faults import as_damage
from mlxk2.runner.prompt_cache import PromptCache
from mlxk2.runner.request import GenerationRequest
from mlxk2.runner.sequences import FAULTS, Rows

# mlx-lm lists every weight that is missing.
_LONGEST_REASON = 300
# Enough for the kernels of prompts, not only for those of single tokens.
_WARM_UP_TOKENS = 64
# Where models that also see or hear have the config of the part that writes.
_TEXT_CONFIGS = ("text_config", "language_config", "llm_config")


ReadTokenizer = Callable[[], tuple[Tokenizer, Vocabulary]]


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, ready to generate in the thread that loaded it."""

    model: Any
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    vocabulary_size: int
    context_length: int | None
    prompt_cache_bytes: int

    def batch(self, max_rows: int, prompts: PromptCache) -> Rows:
        """Return a new, empty batch, whose rows wait while that many are decoded, and which keeps prompts there."""
        if can_batch(self.model):
            return Batch(self.model, self.vocabulary.end_tokens, max_rows, prompts)
        return Queue(self.model, self.vocabulary.end_tokens)

    def warm_up(self) -> None:
        """On a GPU, generate a token or two, so that the first request need not wait for its kernels to be built."""
        if mx.default_device() == mx.cpu:
            return
        rows = self.batch(1, PromptCache(0))
        try:
            rows.insert(GenerationRequest((0,) * _WARM_UP_TOKENS, 2), 2)
            while not any(step.finish_reason for step in rows.next()):
                pass
        except FAULTS as fault:
            # Those who ask will see whether it happens again.
            logging.getLogger(__name__).warning("A first token could not be generated: %s", fault)
        finally:
            rows.close()


def load(
    folder: str | Path,
    adapter: str | Path | None = None,
    *,
    name: str | None = None,
    device: memory.Device | None = None,
    chosen: memory.Chosen = memory.NOTHING_CHOSEN,
    for_batches: bool = False,
    read: ReadTokenizer | None = None,
    starter: Starter | None = None,
    context: int | None = None,
    unload: Callable[[], None] = lambda: None,
) -> LoadedModel:
    """Load the model of a folder, with a LoRA adapter's folder on top if one is given, into the memory of the device.

    Without `name` the folder's is used in messages. `for_batches` makes it take longer, for the sake of the speed of
    many answers at once. `read` gives the tokenizer where it was loaded before. `context` is how many tokens the model
    holds, whatever its files say. `unload` is called to drop the model that is there, as soon as only the reading of
    the weights can still go wrong. Raises ModelError; ValidationError for a folder that is no adapter.
    """
    folder = Path(folder)
    name = name or folder.name
    device = _prepared(device)
    adapter = _checked_adapter(Path(adapter)) if adapter is not None else None
    config = read_config(folder, name)
    tokenizer, vocabulary = read() if read else load_vocabulary(folder, name, config, starter or Starter())
    model = _open_weights(folder, name, adapter)
    plan = device.plan(name, _size(model), chosen)
    if for_batches:
        cpu.suit_batches(model)
    _make_room(unload, plan.wired)
    _read_weights(model, folder, name, plan.wired)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        vocabulary_size=_vocabulary_size(model, tokenizer),
        context_length=context or context_of(folder, name),
        prompt_cache_bytes=plan.prompt_cache,
    )


def _prepared(device: memory.Device | None) -> memory.Device:
    if mx.default_device() == mx.cpu:
        # On the CPU, compiling a fused kernel runs the C++ compiler while the first token waits.
        mx.disable_compile()
    return device or memory.Device.current()


def context_of(folder: Path, name: str) -> int | None:
    """Return how many tokens the model of a folder can hold; None where its files do not say."""
    return context_length(_contents(folder, name))


def _contents(folder: Path, name: str) -> Contents:
    return Contents(Snapshot(name, None, str(folder), roots=None))


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Return the config of a folder, as mlx-lm reads it; raise ModelError for one that can't be run."""
    try:
        config = load_config(folder)
    except (OSError, ValueError) as fault:
        if not folder.is_dir():
            raise _gone(name) from fault
        reason = cause(fault) if isinstance(fault, OSError) else reason_of(fault)
        problem = f"The config.json of {name} can't be read ({reason}). Pull the model again."
        raise ModelUnhealthyError(problem) from fault
    if not isinstance(config, dict):
        raise ModelUnhealthyError(f"The config.json of {name} is not a JSON object. Pull the model again.")
    if config.get("model_file") is not None:
        raise ModelNotRunnableError(f"{name} wants to run code of its own (model_file), which is never executed.")
    return config


def _gone(name: str) -> ModelNotFoundError:
    return ModelNotFoundError(f"{name} is no longer there: its folder was removed a moment ago.")


def load_vocabulary(
    folder: Path, name: str, config: Mapping[str, Any], starter: Starter, cancelled: Cancelled = bool
) -> tuple[Tokenizer, Vocabulary]:
    """Load the tokenizer of a folder, and what it says about text; raise ModelUnhealthyError for a damaged one."""
    damaged = f"The tokenizer of {name} is damaged, or of an unknown kind. Pull the model again or choose another one"
    with as_damage(lambda fault: _sentence(damaged, fault, folder)):
        tokenizer = load_tokenizer(folder, config, starter, damaged, cancelled)
        return tokenizer, Vocabulary.of(tokenizer, _ends_of_config(folder))


def _ends_of_config(folder: Path) -> list[int]:
    """Return the end tokens of config.json, in whose place `load_config` puts those of generation_config.json.

    The part about text may name others.
    """
    with contextlib.suppress(OSError, ValueError):
        config = json.loads((folder / "config.json").read_bytes())
        sources = (config, *(config.get(name) for name in _TEXT_CONFIGS))
        named = (source.get("eos_token_id") for source in sources if isinstance(source, dict))
        return [token for tokens in named for token in token_ids(tokens)]
    return []


def _open_weights(folder: Path, name: str, adapter: Path | None) -> Any:
    """Return the model with weights of which nothing is read yet."""
    try:
        with fenced():  # it imports the architecture
            model, _ = load_model(folder, lazy=True)
        if adapter is not None:
            _lay_over(model, adapter, name)
        cpu.suit(model)
    except (*FAULTS, ImportError) as fault:
        raise _unloadable(name, fault, folder) from fault
    return model


def _size(model: Any) -> int:
    # Nothing is read yet: MLX knows the sizes from the headers.
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def _make_room(unload: Callable[[], None], wired_limit: int) -> None:
    """Drop the model before, and give back its memory, which MLX would keep for arrays of the same sizes."""
    unload()
    gc.collect()
    mx.clear_cache()
    if wired_limit:
        mx.set_wired_limit(0)


def _read_weights(model: Any, folder: Path, name: str, wired_limit: int) -> None:
    try:
        with memory.wired(wired_limit):
            mx.eval(model.parameters())
    except FAULTS as fault:
        raise _unloadable(name, fault, folder) from fault
    # What it took to read them.
    mx.clear_cache()


def _unloadable(name: str, fault: Exception, folder: Path) -> ModelError | ModelNotFoundError:
    """Return what to say of weights that can't be loaded; their files may be other ones than when they were checked."""
    files = _contents(folder, name)
    if problem := health.first_problem(files, needs_tokenizer=False):
        return ModelUnhealthyError(f"{name} is damaged: {problem}")
    return ModelNotRunnableError(_sentence(f"{name} can't be loaded", fault, folder))


def _lay_over(model: Any, adapter: Path, name: str) -> None:
    try:
        load_adapters(model, str(adapter))
        model.eval()
    except FAULTS as fault:
        raise ValidationError(_sentence(f"The adapter {adapter} does not fit {name}", fault, adapter)) from fault


def _checked_adapter(adapter: Path) -> Path:
    for needed in ("adapter_config.json", "adapters.safetensors"):
        if not (adapter / needed).is_file():
            raise ValidationError(f"{adapter} is no adapter: it has no {needed}.")
    try:
        settings = json.loads((adapter / "adapter_config.json").read_bytes())
    except OSError as fault:
        raise OperationError(f"{adapter}/adapter_config.json can't be read: {cause(fault)}.") from fault
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ValidationError(f"{adapter}/adapter_config.json is not a JSON object.")
    return adapter


def _vocabulary_size(model: Any, tokenizer: Any) -> int:
    """Return how many token ids the model has embeddings for; its config may say otherwise."""
    rows = (module.weight.shape[0] for _, module in model.named_modules() if hasattr(module, "as_linear"))
    return max(rows, default=len(tokenizer))


def _sentence(what: str, fault: BaseException, folder: Path) -> str:
    """Say what went wrong in one line, without the path of the folder."""
    reason = " ".join(str(fault).replace(str(folder), folder.name).split())
    return f"{what}: {reason[:_LONGEST_REASON] or type(fault).__name__}"
