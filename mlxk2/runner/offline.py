"""The way into this room: its modules are imported so that nothing they import can reach the network."""

from __future__ import annotations

import gc
from importlib import import_module
from typing import Any

from mlxk2.errors import MlxkError, ModelNotRunnableError
from mlxk2.fence import fenced, raise_open_files, reason_of

# What mlx-lm, transformers and huggingface_hub read once, when they are imported. No hub will be asked: so its address
# and its time-outs, over which the import would fail when they are wrong, don't matter. ModelScope is another hub.
VARIABLES: dict[str, str | None] = {
    "HF_HUB_OFFLINE": "1",
    "HF_ENDPOINT": None,
    "HF_HUB_ETAG_TIMEOUT": None,
    "HF_HUB_DOWNLOAD_TIMEOUT": None,
    "MLXLM_USE_MODELSCOPE": None,
}
# For the weights in hundreds of files, and a connection for each client.
_OPEN_FILES = 2048


def import_offline(module: str) -> Any:
    """Import a module with huggingface_hub switched to offline; nothing else of this process changes.

    Raise ModelNotRunnableError, with the cause, where MLX or what it needs can't be imported.
    """
    raise_open_files(_OPEN_FILES)
    # An import makes no garbage: looking for it two hundred times costs a tenth of a second.
    gc.disable()
    try:
        with fenced(VARIABLES):
            return import_module(module)
    except MlxkError:
        raise
    except Exception as fault:
        raise ModelNotRunnableError(
            f"No model can run here, because a library can't be imported: {reason_of(fault)}.",
            hint="Install mlxk2 again, with its dependencies.",
        ) from fault
    finally:
        gc.enable()
        gc.freeze()
