"""Load a model into memory: only weights from safetensors, none of the model's own code, no network."""

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
from mlxk2.runner.mlx.device import current_device, suit_batches_on_cpu, suit_cpu, wire
from mlxk2.runner.output.text import Vocabulary
from mlxk2.runner.prompt.confined import IsCancelled, Starter, never_cancelled
from mlxk2.runner.prompt.tokenizer import Tokenizer, explain_damage, load_tokenizer, token_ids
from mlxk2.runner.prompt_cache import PromptCache
from mlxk2.runner.request import GenerationRequest
from mlxk2.runner.sequences import MLX_ERRORS, Batch, Step

_WARM_UP_TOKENS = 64  # Enough to build the kernels for prompts, in addition to those for single tokens.
# In models that also read images or sound, one of these keys has the config of the language model.
_TEXT_CONFIGS = ("text_config", "language_config", "llm_config")
# These errors are already clear, or end the program.
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
        """Return a new, empty batch that decodes up to `max_sequences` together, and keeps states in `prompts`."""
        if can_batch(self.model):
            return ParallelBatch(self.model, self.vocabulary.end_tokens, max_sequences, prompts)
        return SerialBatch(self.model, self.vocabulary.end_tokens)

    def warm_up(self) -> None:
        """On a GPU, generate two tokens, so that the first request does not wait until the kernels are built."""
        if mx.default_device() == mx.cpu:
            return
        batch = self.batch(1, PromptCache(0))
        try:
            batch.insert(0, GenerationRequest((0,) * _WARM_UP_TOKENS, 2), 2)
            while not any(isinstance(step, Step) and step.finish_reason for step in batch.next()):
                pass
        except MLX_ERRORS as error:
            # If the error happens again, it ends the request in which it happens.
            logging.getLogger(__name__).warning("A first token could not be generated: %s", error)
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
    unload: Callable[[], None] | None = None,
) -> LoadedModel:
    """Load the model in a folder, with a LoRA adapter if one is given, into the memory of the device.

    Messages use `name`, or the folder's name. `get_tokenizer` returns a tokenizer that is already loaded. `context`
    replaces the context length from the model's files. `for_batches` and `unload` are as for `_read_weights`. Raise
    ModelError, and ValidationError if the adapter is invalid.
    """
    folder = Path(folder)
    name = name or folder.name
    device = device or current_device()
    adapter = None if adapter is None else _find_adapter(Path(adapter))
    config = read_config(folder, name)
    get_tokenizer = get_tokenizer or partial(load_vocabulary, folder, name, config, starter or Starter())
    model = _open_weights(folder, name, adapter)
    read = partial(_read_weights, model, folder, name, device, memory, for_batches)
    # The tokenizer's process takes longer to start. A previous model stays in memory if there is no tokenizer.
    plan = read() if unload is None else None
    tokenizer, vocabulary = get_tokenizer()
    plan = plan or read(unload)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        vocabulary_size=_vocabulary_size(model, tokenizer),
        context_length=context or context_of(folder, name),
        prompt_cache_bytes=plan.prompt_cache,
        max_cached_arrays=device.max_cached_arrays,
    )


def _vocabulary_size(model: Any, tokenizer: Tokenizer) -> int:
    """Return the size of the embeddings, which can differ from the size in the config."""
    sizes = (module.weight.shape[0] for _, module in model.named_modules() if hasattr(module, "as_linear"))
    return max(sizes, default=len(tokenizer))


def _read_weights(
    model: Any,
    folder: Path,
    name: str,
    device: Device,
    memory: MemoryChoice,
    for_batches: bool,
    unload: Callable[[], None] | None = None,
) -> MemoryPlan:
    """Read a model's weights into memory, and return the plan for the rest of the memory.

    With `for_batches`, loading takes longer, but many completions at once are faster. `unload` drops the model that is
    in memory; it is called late, when only reading the weights can still fail.
    """
    if mx.default_device() == mx.cpu:
        # On the CPU, compiling a fused kernel runs the C++ compiler, and the first token would wait for it.
        mx.disable_compile()
    # MLX knows the sizes from the headers, before it has read the weights.
    plan = device.plan(name, sum(array.nbytes for _, array in tree_flatten(model.parameters())), memory)
    if for_batches:
        suit_batches_on_cpu(model)
    if unload is not None:
        unload()
    # Otherwise MLX would keep the previous model's memory for arrays of the same sizes.
    gc.collect()
    mx.clear_cache()
    if plan.wired:
        mx.set_wired_limit(0)
    try:
        with wire(plan.wired):
            # Python notices Ctrl-C only between two arrays.
            for _, array in tree_flatten(model.parameters()):
                mx.eval(array)
    except MLX_ERRORS as error:
        raise _loading_error(name, error, folder) from error
    # Free the memory that reading the weights needed.
    mx.clear_cache()
    return plan


def context_of(folder: Path, name: str) -> int | None:
    """Return the context length of the model in a folder, or None if its files do not have it."""
    return context_length(_snapshot(folder, name))


def _snapshot(folder: Path, name: str) -> Snapshot:
    return Snapshot(name, None, str(folder), roots=None)


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Return the config of a folder as mlx-lm reads it; raise ModelError if the model can't run."""
    try:
        config = load_config(folder)
    except (OSError, ValueError) as error:
        if not folder.is_dir():
            gone = f"{name} no longer exists: its folder was removed a moment ago."
            raise ModelNotFoundError(gone) from error
        reason = cause(error) if isinstance(error, OSError) else reason_of(error)
        problem = f"The config.json of {name} can't be read ({reason}). Pull the model again."
        raise ModelUnhealthyError(problem) from error
    if not isinstance(config, dict):
        raise ModelUnhealthyError(f"The config.json of {name} is not a JSON object. Pull the model again.")
    if config.get("model_file") is not None:
        raise ModelNotRunnableError(f"{name} asks to run its own code (model_file), which is never executed.")
    return config


def load_vocabulary(
    folder: Path, name: str, config: Mapping[str, Any], starter: Starter, is_cancelled: IsCancelled = never_cancelled
) -> tuple[Tokenizer, Vocabulary]:
    """Load the tokenizer and the vocabulary of a folder; raise ModelUnhealthyError if the tokenizer is damaged."""
    try:
        tokenizer = load_tokenizer(folder, config, starter, name, is_cancelled)
        return tokenizer, Vocabulary.of(tokenizer, _config_end_tokens(folder))
    except _NO_DAMAGE:
        raise
    # The tokenizers in Rust raise bare Exceptions, and their panics are not even Exceptions.
    except BaseException as error:
        raise explain_damage(name, folder, str(error) or type(error).__name__) from error


def _config_end_tokens(folder: Path) -> list[int]:
    """Return the end tokens in config.json; `load_config` replaces them by those in generation_config.json.

    The language model's part of the config can have other end tokens, which are included.
    """
    with contextlib.suppress(OSError, ValueError):
        config = json.loads((folder / "config.json").read_bytes())
        sources = (config, *(config.get(name) for name in _TEXT_CONFIGS))
        named = (source.get("eos_token_id") for source in sources if isinstance(source, dict))
        return [token for tokens in named for token in token_ids(tokens)]
    return []


def _open_weights(folder: Path, name: str, adapter: Path | None) -> Any:
    """Return the model before its weights are read."""
    try:
        with fence():  # `load_model` imports the architecture.
            model, _ = load_model(folder, lazy=True)
    except (*MLX_ERRORS, ImportError) as error:
        raise _loading_error(name, error, folder) from error
    if adapter is not None:
        try:
            load_adapters(model, str(adapter))
            model.eval()
        except MLX_ERRORS as error:
            raise ValidationError(_sentence(f"The adapter {adapter} does not fit {name}", error, adapter)) from error
    suit_cpu(model)
    return model


def _find_adapter(adapter: Path) -> Path:
    """Check the folder of an adapter; raise ValidationError if it is not one, OperationError if it can't be read."""
    for needed in ("adapter_config.json", "adapters.safetensors"):
        if not (adapter / needed).is_file():
            raise ValidationError(f"{adapter} is not an adapter: it has no {needed}.")
    try:
        settings = json.loads((adapter / "adapter_config.json").read_bytes())
    except OSError as error:
        raise OperationError(f"{adapter}/adapter_config.json can't be read: {cause(error)}.") from error
    except ValueError as error:
        reason = reason_of(error)
        raise ValidationError(f"{adapter}/adapter_config.json is not valid JSON ({reason}).") from error
    if not isinstance(settings, dict):
        raise ValidationError(f"{adapter}/adapter_config.json is not a JSON object.")
    return adapter


def _loading_error(name: str, error: Exception, folder: Path) -> ModelError | ModelNotFoundError:
    """Return the error for weights that can't be loaded; check the files again, because they can have changed."""
    if problem := health.first_problem(_snapshot(folder, name), needs_tokenizer=False):
        return ModelUnhealthyError(f"{name} is damaged: {problem.text}")
    return ModelNotRunnableError(_sentence(f"{name} can't be loaded", error, folder))


def _sentence(what: str, error: BaseException, folder: Path) -> str:
    """Return a message with the reason of an error; the reason shows only the name of the folder, not its path."""
    return f"{what}: {reason_of(error).replace(str(folder), folder.name)}"
