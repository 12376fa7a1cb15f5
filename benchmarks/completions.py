"""Ask a model with `mlxk2 run` or `mlx_lm generate`, and measure when the completion's text comes out of the pipe."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

NAMES = ("mlxk2 run", "mlx_lm generate")
PROMPT = "hello there"
DEMO = Path(__file__).parent.parent / "mlxk2" / "demo"
RULE = b"=" * 10  # mlx_lm prints this before and after the completion.


class Completion(NamedTuple):
    """A completion's text, and the times of its first and last character, in seconds after the start of the process."""

    text: str
    first: float
    last: float

    def tokens_per_second(self, tokens: int) -> float:
        """Return the speed of decoding between the first and the last of these tokens."""
        return (tokens - 1) / (self.last - self.first)


class Piece(NamedTuple):
    """Bytes, and the time when they came."""

    seconds: float
    content: bytes


def ask_mlxk2(model: Path, tokens: int, kernels: Path, prompt: str = PROMPT) -> Completion:
    """Ask with `mlxk2 run`: greedy, without repetition penalty, with the kernel cache in this folder."""
    command = ["mlxk2", "run", str(model), prompt, "--temperature", "0", "--repetition-penalty", "1.0"]
    pieces = _listen([*command, "--max-tokens", str(tokens)], kernels)
    output = b"".join(piece.content for piece in pieces)
    return _completion(pieces, 0, len(output.rstrip(b"\n")))


def ask_mlx_lm(model: Path, tokens: int, kernels: Path, prompt: str = PROMPT) -> Completion:
    """Ask with `mlx_lm generate`: greedy, with the kernel cache in this folder."""
    command = ["mlx_lm", "generate", "--model", str(model), "--prompt", prompt, "--temp", "0"]
    pieces = _listen([*command, "--max-tokens", str(tokens)], kernels)
    output = b"".join(piece.content for piece in pieces)
    return _completion(pieces, output.index(RULE) + len(RULE) + 1, output.index(b"\n" + RULE))


def _listen(module: list[str], kernels: Path) -> list[Piece]:
    """Run a module as a program and return the pieces of its output; raise RuntimeError when it fails.

    On the CPU, MLX compiles fused kernels when they are first used, and keeps them in the folder for temporary files.
    """
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            env={**os.environ, "TMPDIR": str(kernels), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        pieces = []
        with process:
            assert process.stdout is not None
            while content := os.read(process.stdout.fileno(), 1 << 16):
                pieces.append(Piece(time.perf_counter() - start, content))
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(module)} failed:\n{errors.read().decode(errors='replace')}")
    return pieces


def _completion(pieces: list[Piece], begin: int, end: int) -> Completion:
    """Return the completion between two positions of the output."""
    output = b"".join(piece.content for piece in pieces)
    return Completion(output[begin:end].decode(), _when(pieces, begin), _when(pieces, end - 1))


def _when(pieces: list[Piece], place: int) -> float:
    """Return the time when the byte at a position of the output came."""
    seen = 0
    for piece in pieces:
        seen += len(piece.content)
        if place < seen:
            return piece.seconds
    raise RuntimeError("There was no completion.")
