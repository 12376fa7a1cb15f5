"""Import the libraries that run models in offline mode, so that they can't use the network."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from mlxk2.errors import MlxkError, ModelNotRunnableError
from mlxk2.fence import fence, raise_open_files
from mlxk2.formatting import reason_of

# mlx-lm, transformers and huggingface_hub read these once, when they are imported. An invalid address or time-out would
# make the import fail, and offline mode needs neither. ModelScope is another hub.
VARIABLES: dict[str, str | None] = {
    "HF_HUB_OFFLINE": "1",
    "HF_ENDPOINT": None,
    "HF_HUB_ETAG_TIMEOUT": None,
    "HF_HUB_DOWNLOAD_TIMEOUT": None,
    "MLXLM_USE_MODELSCOPE": None,
}
# mlx-lm imports these to load tokenizers and to reach the hub. Here tokenizers are loaded in processes of their own,
# and the hub is not reached. Importing them would take half a second.
_UNUSED = ("transformers", "transformers.tokenization_utils_base", "huggingface_hub")
_MIN_OPEN_FILES = 2048  # Enough for weights in hundreds of files, and a connection for each client.


class _Unused:
    """Takes the place of the names that mlx-lm imports from these libraries."""

    @staticmethod
    def register(*_: object, **__: object) -> None:
        """Do nothing: mlx-lm registers a tokenizer of its own with transformers."""


@contextmanager
def _without_unused() -> Iterator[None]:
    """Let mlx-lm be imported without the libraries that it does not need here, unless they are imported already."""
    names = [name for name in _UNUSED if name.partition(".")[0] not in sys.modules]
    for name in names:
        sys.modules[name] = module = ModuleType(name)
        module.__getattr__ = lambda _: _Unused  # type: ignore[method-assign]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


@contextmanager
def offline() -> Iterator[None]:
    """Import modules in this block with huggingface_hub in offline mode.

    Two changes of the process stay: it may open more files, and the garbage collector skips all objects that exist
    after the block (`gc.freeze`). Raise ModelNotRunnableError, with the cause, if a library can't be imported.
    """
    raise_open_files(_MIN_OPEN_FILES)
    # Imports create no garbage, and two hundred searches for it would take a tenth of a second.
    gc.disable()
    try:
        with fence(VARIABLES), _without_unused():
            yield
    except MlxkError:
        raise
    except Exception as error:
        raise ModelNotRunnableError(
            f"No model can run here, because a library can't be imported: {reason_of(error)}.",
            hint="Install mlxk2 again, with its dependencies.",
        ) from error
    finally:
        gc.enable()
        gc.freeze()
