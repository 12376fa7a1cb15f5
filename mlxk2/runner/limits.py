"""What a model may use: time and memory in the process of its tokenizer, and wired memory of the GPU."""

from __future__ import annotations

from collections.abc import Mapping

from mlxk2.formatting import parse_size

WIRED_VARIABLE = "MLXK2_WIRED_LIMIT"

# Of processor time, for one rendering. The longest conversations that fit a context take a tenth of it.
TEMPLATE_SECONDS = 2.0
# Of processor time, by what is asked. Some tokenizers are converted when they are loaded: most of a minute on a slow
# machine. A prompt of a million tokens takes two seconds. A line of an answer, which is decoded while the answers of
# others wait, takes less than a millisecond.
SECONDS = {"open": 120.0, "chat": 10.0, "encode": 10.0, "decode": 1.0, "find": 1.0}
# Of wall time: a process that was stopped, or that waits for a disk, uses no processor time.
PATIENCE = {"open": 180.0, "chat": 20.0, "encode": 20.0, "decode": 5.0, "find": 5.0}
# Bytes; on Linux beyond what the process has mapped once its libraries are imported.
MEMORY = 3 << 30
# Characters that a token may be decoded to; the longest of any model known has some hundred.
TOKEN_TEXT = 4096


def wired_limit(environment: Mapping[str, str]) -> int | None:
    """Return how many bytes the user wants to stay wired on a Mac, None where that is left to mlxk2."""
    given = environment.get(WIRED_VARIABLE)
    return parse_size(given, WIRED_VARIABLE, "8GB, or 0 to wire nothing") if given else None
