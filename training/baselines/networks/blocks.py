"""The pieces of a transformer over histories: causal attention, perceptron, block. Norms come first."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Residual causal attention: x + attention(norm(x)), to x itself or to another sequence of the same length."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return x, float [B, T, D], with what it read. Position t sees 1 .. t, so padding belongs at the end.

        other: the sequence that is read, [B, T, D]; None: x.
        """
        q, k, v = self._heads(x)
        if other is not None:
            _, k, v = self._heads(other)
        noise = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, dropout_p=noise, is_causal=True)
        return x + F.dropout(self.out(seen.transpose(1, 2).reshape(x.shape)), noise)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, [B, heads, T, D / heads] each."""
        B, T, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v


class Perceptron(nn.Module):
    """Residual perceptron: x + perceptron(norm(x))."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to each position of x, float [B, T, D]."""
        inner = F.dropout(F.gelu(self.up(self.norm(x))), self.dropout, self.training)
        return x + F.dropout(self.down(inner), self.dropout, self.training)


class Block(nn.Sequential):
    """Transformer block: attention to the sequence itself, then a perceptron."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(Attention(width, heads, dropout), Perceptron(width, dropout))
