"""SASRec: a causal transformer over item vectors predicts the next item.

Source: Kang & McAuley, *Self-Attentive Sequential Recommendation*, arXiv 1808.09781, with the loss over the full
catalogue of Klenitskiy & Vasilev, *Turning Dross Into Gold Loss*, arXiv 2309.07602.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.baselines.networks.blocks import Block


class SASRec(nn.Module):
    """The transformer over item vectors. Input and output vectors of items are the same (tied).

    items: module whose `forward()` gives the vectors of all items, [N, D].
    """

    def __init__(
        self, items: nn.Module, width: int, *,
        layers: int, heads: int, dropout: float, max_events: int, start: float = 0.02,
    ) -> None:  # fmt: skip
        """Draw the first weights. start: standard deviation of the first position vectors, like that of the items."""
        super().__init__()
        self.items, self.dropout, self.max_events = items, dropout, max_events
        self.positions = nn.Embedding(max_events, width)
        nn.init.normal_(self.positions.weight, std=start)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.input_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def states(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """Return the state after each event: float32 [B, T, D].

        vectors: the result of `items()`, [N, D].
        rows: catalogue rows of the events, int64 [B, T], oldest first.
        """
        x = F.embedding(rows, vectors) + self.positions.weight[: rows.shape[1]]
        x = F.dropout(self.input_norm(x), self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        known: Tensor = self.norm(x)
        return known
