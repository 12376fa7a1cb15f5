"""Loading a model into memory: weights from safetensors only, no code of the model, no network."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import load_adapters, load_config, load_model

from mlxk2.checkpoint import health
from mlxk2.checkpoint.describe import context_length
from mlxk2.checkpoint.snapshot import Snapshot
from mlxk2.errors import (
    MlxkError,
    ModelError,
    ModelNotFoundError,
    ModelNotRunnableError,
    ModelUnhealthyError,
    OperationError,
    ValidationError,
    cause,
)
from mlxk2.fence import fence
from mlxk2.formatting import reason_of
from mlxk2.runner.memory import AUTOMATIC, Device, MemoryChoice, MemoryPlan
from mlxk2.runner.mlx.batch import ParallelBatch, SerialBatch, can_batch
from mlxk2.runner.mlx.device import current_device, suit_batches_on_cpu, suit_cpu, wired
from mlxk2.runner.output.text import Vocabulary
from mlxk2.runner.prompt.confined import Cancelled, Starter, never_cancelled
from mlxk2.runner.prompt.tokenizer import Tokenizer, explain_damage, load_tokenizer, token_ids
from mlxk2.runner.prompt_cache import PromptCache
from mlxk2.runner.request import GenerationRequest
from mlxk2.runner.sequences import FAULTS, Batch, Step

# mlx-lm lists every weight that is missing.
_MAX_REASON_CHARACTERS = 300
# Enough for the kernels of prompts, not only for those of single tokens.
_WARM_UP_TOKENS = 64
# Models that also see or hear have the config of the part that writes under one of these keys.
_TEXT_CONFIGS = ("text_config", "language_config", "llm_config")
# These errors say already what is wrong, or end the program.
_NO_DAMAGE = (MlxkError, KeyboardInterrupt, SystemExit, GeneratorExit)

GetTokenizer = Callable[[], tuple[Tokenizer, Vocabulary]]


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, ready to generate in the thread that loaded it."""

    model: Any
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    vocabulary_size: int
    context_length: int | None
    prompt_cache_bytes: int
    max_cached_arrays: int | None

    def batch(self, max_sequences: int, prompts: PromptCache) -> Batch:
        """Return a new, empty batch that decodes so many sequences at a time, and retains states in `prompts`."""
        if can_batch(self.model):
            return ParallelBatch(self.model, self.vocabulary.end_tokens, max_sequences, prompts)
        return SerialBatch(self.model, self.vocabulary.end_tokens)

    def warm_up(self) -> None:
        """On a GPU, generate two tokens, so that the first request need not wait until its kernels are built."""
        if mx.default_device() == mx.cpu:
            return
        batch = self.batch(1, PromptCache(0))
        try:
            batch.insert(0, GenerationRequest((0,) * _WARM_UP_TOKENS, 2), 2)
            while not any(isinstance(step, Step) and step.finish_reason for step in batch.next()):
                pass
        except FAULTS as fault:
            # If it happens again, the request that it happens to fails.
            logging.getLogger(__name__).warning("A first token could not be generated: %s", fault)
        finally:
            batch.close()


def load(
    folder: str | Path,
    adapter: str | Path | None = None,
    *,
    name: str | None = None,
    device: Device | None = None,
    memory: MemoryChoice = AUTOMATIC,
    for_batches: bool = False,
    get_tokenizer: GetTokenizer | None = None,
    starter: Starter | None = None,
    context: int | None = None,
    unload: Callable[[], None] = lambda: None,
) -> LoadedModel:
    """Load the model of a folder, with a LoRA adapter's folder on top if one is given, into the memory of the device.

    Messages use `name`, or the folder's. `get_tokenizer` returns a tokenizer that is loaded already. `context` is how
    many tokens the model holds, whatever its files say. `for_batches` and `unload` are those of `_read_weights`.
    Raise ModelError; raise ValidationError for a folder that is no adapter.
    """
    folder = Path(folder)
    name = name or folder.name
    device = device or current_device()
    adapter = None if adapter is None else _find_adapter(Path(adapter))
    config = read_config(folder, name)
    if get_tokenizer is None:
        get_tokenizer = partial(load_vocabulary, folder, name, config, starter or Starter())
    tokenizer, vocabulary = get_tokenizer()
    model = _open_weights(folder, name, adapter)
    plan = _read_weights(model, folder, name, device, memory, for_batches, unload)
    # The config may say another size than the embeddings have.
    sizes = (module.weight.shape[0] for _, module in model.named_modules() if hasattr(module, "as_linear"))
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        vocabulary_size=max(sizes, default=len(tokenizer)),
        context_length=context or context_of(folder, name),
        prompt_cache_bytes=plan.prompt_cache,
        max_cached_arrays=device.max_cached_arrays,
    )


def _read_weights(
    model: Any,
    folder: Path,
    name: str,
    device: Device,
    memory: MemoryChoice,
    for_batches: bool,
    unload: Callable[[], None],
) -> MemoryPlan:
    """Read a model's weights into the memory, and return what else the memory is for.

    With `for_batches` this takes longer, so that many completions at once are faster. `unload` drops the model that is
    in memory; it is called when only the reading of the weights can still fail.
    """
    if mx.default_device() == mx.cpu:
        # On the CPU, compiling a fused kernel runs the C++ compiler while the first token waits.
        mx.disable_compile()
    # MLX knows the sizes from the headers, before it reads the weights.
    plan = device.plan(name, sum(array.nbytes for _, array in tree_flatten(model.parameters())), memory)
    if for_batches:
        suit_batches_on_cpu(model)
    unload()
    # MLX would keep the memory of the model before for arrays of the same sizes.
    gc.collect()
    mx.clear_cache()
    if plan.wired:
        mx.set_wired_limit(0)
    try:
        with wired(plan.wired):
            # Between two of them Ctrl-C is noticed.
            for _, array in tree_flatten(model.parameters()):
                mx.eval(array)
    except FAULTS as fault:
        raise _loading_error(name, fault, folder) from fault
    # The memory that it took to read them.
    mx.clear_cache()
    return plan


def context_of(folder: Path, name: str) -> int | None:
    """Return how many tokens the model of a folder can hold; None if its files do not say."""
    return context_length(_snapshot(folder, name))


def _snapshot(folder: Path, name: str) -> Snapshot:
    return Snapshot(name, None, str(folder), roots=None)


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Return the config of a folder, as mlx-lm reads it; raise ModelError if the model can't be run."""
    try:
        config = load_config(folder)
    except (OSError, ValueError) as fault:
        if not folder.is_dir():
            gone = f"{name} is no longer there: its folder was removed a moment ago."
            raise ModelNotFoundError(gone) from fault
        reason = cause(fault) if isinstance(fault, OSError) else reason_of(fault)
        problem = f"The config.json of {name} can't be read ({reason}). Pull the model again."
        raise ModelUnhealthyError(problem) from fault
    if not isinstance(config, dict):
        raise ModelUnhealthyError(f"The config.json of {name} is not a JSON object. Pull the model again.")
    if config.get("model_file") is not None:
        raise ModelNotRunnableError(f"{name} wants to run code of its own (model_file), which is never executed.")
    return config


def load_vocabulary(
    folder: Path, name: str, config: Mapping[str, Any], starter: Starter, cancelled: Cancelled = never_cancelled
) -> tuple[Tokenizer, Vocabulary]:
    """Load the tokenizer of a folder, and what it says about text; raise ModelUnhealthyError if it is damaged."""
    try:
        tokenizer = load_tokenizer(folder, config, starter, name, cancelled)
        return tokenizer, Vocabulary.of(tokenizer, _config_end_tokens(folder))
    except _NO_DAMAGE:
        raise
    # Rust's tokenizers raise bare Exceptions, and their panics are no Exceptions at all.
    except BaseException as fault:
        raise explain_damage(name, folder, str(fault) or type(fault).__name__) from fault


def _config_end_tokens(folder: Path) -> list[int]:
    """Return the end tokens of config.json, which `load_config` replaces by those of generation_config.json.

    The part of the config about text may name other tokens.
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
        with fence():  # it imports the architecture
            model, _ = load_model(folder, lazy=True)
    except (*FAULTS, ImportError) as fault:
        raise _loading_error(name, fault, folder) from fault
    if adapter is not None:
        try:
            load_adapters(model, str(adapter))
            model.eval()
        except FAULTS as fault:
            raise ValidationError(_sentence(f"The adapter {adapter} does not fit {name}", fault, adapter)) from fault
    suit_cpu(model)
    return model


def _find_adapter(adapter: Path) -> Path:
    """Return the folder of an adapter; raise ValidationError if it is none, OperationError if it can't be read."""
    for needed in ("adapter_config.json", "adapters.safetensors"):
        if not (adapter / needed).is_file():
            raise ValidationError(f"{adapter} is no adapter: it has no {needed}.")
    try:
        settings = json.loads((adapter / "adapter_config.json").read_bytes())
    except OSError as fault:
        raise OperationError(f"{adapter}/adapter_config.json can't be read: {cause(fault)}.") from fault
    except ValueError as fault:
        reason = reason_of(fault)
        raise ValidationError(f"{adapter}/adapter_config.json is not valid JSON ({reason}).") from fault
    if not isinstance(settings, dict):
        raise ValidationError(f"{adapter}/adapter_config.json is not a JSON object.")
    return adapter


def _loading_error(name: str, fault: Exception, folder: Path) -> ModelError | ModelNotFoundError:
    """Return the error for weights that can't be loaded; their files may have changed since they were checked."""
    if problem := health.first_problem(_snapshot(folder, name), needs_tokenizer=False):
        return ModelUnhealthyError(f"{name} is damaged: {problem.text}")
    return ModelNotRunnableError(_sentence(f"{name} can't be loaded", fault, folder))


def _sentence(what: str, fault: BaseException, folder: Path) -> str:
    """Return what went wrong in one line, without the path of the folder."""
    reason = " ".join(str(fault).replace(str(folder), folder.name).split())
    return f"{what}: {reason[:_MAX_REASON_CHARACTERS] or type(fault).__name__}"
