"""The way into this room: its modules are imported so that nothing they import can reach the network."""

from __future__ import annotations

import gc
import os
from importlib import import_module
from typing import Any

from mlxk2.errors import ModelNotRunnableError

# huggingface_hub, which mlx-lm and transformers import, reads these once, when it is imported. No hub will be asked,
# so that an address which is none, over which it would fail, need not trouble anybody.
_SETTINGS = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "https://huggingface.co"}


def import_offline(module: str) -> Any:
    """Import a module with huggingface_hub switched to offline; the environment is afterwards as it was.

    Raises ModelNotRunnableError where MLX, or what it needs, is not there.
    """
    before = {name: os.environ.get(name) for name in _SETTINGS}
    os.environ.update(_SETTINGS)
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
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
