"""The demo model's network in PyTorch: Qwen3 as mlx-lm computes it, in a size that a CPU can train."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """The sizes of the network, with the same names as in `config.json`."""

    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    head_dim: int = 32
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 4096


class Projection(nn.Linear):
    """A matrix product in bfloat16; on a CPU with units for it, several times faster than in float32."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product in float32, so that all other operations use float32."""
        return functional.linear(x.bfloat16(), self.weight.bfloat16()).float()


class Norm(nn.Module):
    """Root mean square normalisation over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` scaled to unit mean square, times the weight."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Causal attention with grouped keys, normalised queries and keys, and rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        queries = shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        self.q_proj = Projection(shape.hidden_size, queries)
        self.k_proj = Projection(shape.hidden_size, keys)
        self.v_proj = Projection(shape.hidden_size, keys)
        self.o_proj = Projection(queries, shape.hidden_size)
        self.q_norm = Norm(shape.head_dim, shape.rms_norm_eps)
        self.k_norm = Norm(shape.head_dim, shape.rms_norm_eps)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """Return the output of the attention; `x` is [batch, length, hidden], `turn` is from `rotation`."""
        batch, length, _ = x.shape

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, length, -1, self.shape.head_dim)

        queries = rotate(self.q_norm(heads(self.q_proj(x))).transpose(1, 2), turn)
        keys = rotate(self.k_norm(heads(self.k_proj(x))).transpose(1, 2), turn)
        values = heads(self.v_proj(x)).transpose(1, 2)
        mixed = attend(queries, keys, values)
        projected: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return projected


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return causal attention [batch, heads, length, head]; keys may have fewer heads than queries.

    Written out, because the backward pass of PyTorch's fused CPU kernel is slower on short rows.
    """
    batch, heads, length, size = queries.shape
    groups = keys.shape[1]
    grouped = (queries * size**-0.5).reshape(batch, groups, -1, size)
    scores = (grouped @ keys.transpose(-1, -2)).view(batch, groups, heads // groups, length, length)
    future = torch.full((length, length), float("-inf")).triu(1)
    weights = (scores + future).softmax(-1)
    return (weights.view(batch, groups, -1, length) @ values).view(batch, heads, length, size)


class FeedForward(nn.Module):
    """The gated feed-forward layer, SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = Projection(shape.hidden_size, shape.intermediate_size)
        self.up_proj = Projection(shape.hidden_size, shape.intermediate_size)
        self.down_proj = Projection(shape.intermediate_size, shape.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the layer for `x` [..., hidden]."""
        part: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return part


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to its input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """Return `x` [batch, length, hidden] after this layer."""
        x = x + self.self_attn(self.input_layernorm(x), turn)
        added: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return added


class Network(nn.Module):
    """The whole network; its parameters have the names that mlx-lm expects after `model.`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.apply(_initialize)

    def forward(self, tokens: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        """Return logits [n, vocab] at the flat indices `places` [n] of `tokens` [batch, length]."""
        turn = rotation(positions, self.shape)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, turn)
        last = self.norm(x.flatten(0, 1)[places]).bfloat16()
        return functional.linear(last, self.embed_tokens.weight.bfloat16()).float()


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.05)


def rotation(positions: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Return cosine and sine [batch, 1, length, head] of the rotary angles of `positions` [batch, length]."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = positions.float()[:, None, :, None] * shape.rope_theta**-exponents
    both = torch.cat([angles, angles], dim=-1)
    return both.cos(), both.sin()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the two halves of `x` [batch, heads, length, head] by the angles in `turn`."""
    first, second = x.chunk(2, dim=-1)
    return x * turn[0] + torch.cat([-second, first], dim=-1) * turn[1]
