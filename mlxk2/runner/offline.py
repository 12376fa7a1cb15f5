"""The way into this room: its modules are imported so that nothing they import can reach the network."""

from __future__ import annotations

import gc
import os
from importlib import import_module
from typing import Any

from mlxk2.errors import ModelNotRunnableError

# huggingface_hub, which mlx-lm and transformers import, reads this once, when it is imported.
_VARIABLE = "HF_HUB_OFFLINE"


def import_offline(module: str) -> Any:
    """Import a module with huggingface_hub switched to offline; the environment is afterwards as it was.

    Raises ModelNotRunnableError where MLX, or what it needs, is not there.
    """
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    # An import makes no garbage: looking for it two hundred times costs a tenth of a second.
    gc.disable()
    try:
        return import_module(module)
    except ImportError as fault:
        raise ModelNotRunnableError(
            f"No model can run here: {fault.name or 'a library'} can't be imported.",
            hint="Install mlxk2 again, with its dependencies.",
        ) from fault
    finally:
        gc.enable()
        gc.freeze()
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before
