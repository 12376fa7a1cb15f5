"""What the program knows of a model: a value for commands and the server to decide on.

This module imports nothing heavy: `list` reads models that it remembers without the code that judges them.
"""

from typing import Literal, NamedTuple

Framework = Literal["MLX", "GGUF", "PyTorch", "Unknown"]
ModelType = Literal["chat", "embedding", "base", "unknown"]


class ModelInfo(NamedTuple):
    """What a snapshot's files say of a model.

    `commit` is None for a folder that the user named by path. `size_bytes` counts each file's bytes once, however many
    names it has. `modified` is in seconds since 1970. `problem` says what is wrong with the files, and `problem_file`
    names the one that it is about, if it is about one; it `is_refused` when the operating system does not let the user
    read some of them. `why_not_runnable` says why mlx-lm can't run the model here, which for an unhealthy model is its
    problem.
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
        """Whether mlx-lm can run the model here; no damaged model is runnable."""
        return self.why_not_runnable is None
