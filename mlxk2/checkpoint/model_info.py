"""The description of a model, on which commands and the server base their decisions.

This module has no heavy imports, because `list` loads remembered descriptions without the code that makes them.
"""

from typing import Literal, NamedTuple

Framework = Literal["MLX", "GGUF", "PyTorch", "Unknown"]
ModelType = Literal["chat", "embedding", "base", "unknown"]


class ModelInfo(NamedTuple):
    """The description of a model, made from a snapshot's files.

    `commit` is None for a folder that the user named by path. `size_bytes` counts the bytes of a file with several
    names once. `modified` is in seconds since 1970. `problem` says what is wrong with the files, and `problem_file`
    names the broken file if it is only one. `is_refused` is true when the operating system does not let the user read
    some files. `why_not_runnable` says why mlx-lm can't run the model here; for an unhealthy model it equals `problem`.
    """

    name: str
    commit: str | None
    size_bytes: int
    modified: int
    framework: Framework
    model_type: ModelType
    problem: str | None
    problem_file: str | None
    is_refused: bool
    why_not_runnable: str | None

    @property
    def is_healthy(self) -> bool:
        """Whether the model's files are complete and undamaged."""
        return self.problem is None

    @property
    def is_runnable(self) -> bool:
        """Whether mlx-lm can run the model here; a damaged model is never runnable."""
        return self.why_not_runnable is None
