"""Make a part of `run` slow: Python imports this file at its start when it is on the path.

`SLOW` names the part: `load` (importing mlx_lm takes as many seconds as `SLOW_SECONDS` says), `tokenize` (the
tokenizer's process sleeps before it makes a prompt), `prefill` (each piece of a prompt takes a fifth of a second), or
`piece` (the first piece takes an hour).
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

SECONDS = float(os.environ.get("SLOW_SECONDS", "15"))


class _SlowImport:
    """A finder of modules that finds nothing and delays the import of mlx_lm."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "mlx_lm":
            time.sleep(SECONDS)


_loads = json.loads


def _slow_loads(text: Any, **options: Any) -> Any:
    question = _loads(text, **options)
    if isinstance(question, dict) and question.get("ask") in ("chat", "encode"):
        time.sleep(SECONDS)
    return question


def _slow_prefill(seconds: float) -> None:
    import mlx.core as mx  # noqa: PLC0415 - not in the processes of tokenizers

    clear_cache = mx.clear_cache

    def clear_slowly() -> None:
        # Loading a model clears the cache, too.
        if sys._getframe(1).f_code.co_filename.endswith("prefill.py"):
            time.sleep(seconds)
        clear_cache()

    mx.clear_cache = clear_slowly


if "mlxk2.runner.prompt.process" in sys.orig_argv:
    if os.environ["SLOW"] == "tokenize":
        json.loads = _slow_loads  # type: ignore[assignment] # it is called with these arguments only
elif os.environ["SLOW"] == "load":
    sys.meta_path.insert(0, _SlowImport)
elif os.environ["SLOW"] in ("prefill", "piece"):
    _slow_prefill(0.2 if os.environ["SLOW"] == "prefill" else 3600)
