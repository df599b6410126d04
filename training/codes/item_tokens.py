"""Sequences whose codes are still open: each (item, level) has a token of its own, behind those of the model.

    token of code j of item i  =  vocabulary.size + i · levels + j

levels: all but the one that separates collisions.

The encoder of sequences writes these in place of the codes' tokens. When a sequence is read, such a token stands for
the row Σ_k y_{i,j,k} E_{j,k}: the rows of the codes of level j, mixed by the shares y of item i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from index.sequence.vocabulary import IdentifierVocabulary
from training.loop.parts import Part


@dataclass(frozen=True)
class ItemTokens:
    """The tokens of items with open codes."""

    vocabulary: IdentifierVocabulary

    @property
    def levels(self) -> int:
        """Levels whose codes are open."""
        return self.vocabulary.levels - 1

    def written(self, numbers: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the tokens of items, int64 [N, L].

        numbers: code of each item at the last level, which is not open, [N].
        """
        opened = self.vocabulary.size + np.arange(len(numbers) * self.levels).reshape(-1, self.levels)
        first = self.vocabulary.first_code[-1]
        return np.column_stack([opened, first + numbers]).astype(np.int64)

    def items(self, part: Part) -> Tensor:
        """Return the rows of the items that a part reads or writes, ascending, int64 [U]."""
        ids = torch.cat([each.flatten() for each in (part.ids, part.prompt) if each is not None])
        found: Tensor = torch.unique(self.item(ids[ids >= self.vocabulary.size]))
        return found

    def item(self, ids: Tensor) -> Tensor:
        """Return the catalogue row that open tokens belong to."""
        return (ids - self.vocabulary.size) // self.levels

    def rows(self, model: PreTrainedModel, ids: Tensor, items: Tensor, shares: Sequence[Tensor]) -> Tensor:
        """Return the input rows of tokens, float [B, T, d], on the model's device.

        ids: int64 [B, T], on the host.
        items: rows of the items among them, ascending, int64 [U].
        shares: of the codes of each level, float [U, K_j].
        """
        embedding, device = model.get_input_embeddings(), model.device
        opened = ids >= self.vocabulary.size
        rows: Tensor = embedding(ids.where(~opened, 0).to(device))
        if not len(items):
            return rows
        scale = getattr(embedding, "embed_scale", 1.0)  # Gemma multiplies rows by a constant
        spans = [self.vocabulary.span(level) for level in range(self.levels)]
        mixed = [
            share @ embedding.weight[first:last] * scale
            for share, (first, last) in zip(shares, spans, strict=True)
        ]
        table = torch.stack(mixed, 1).flatten(0, 1)  # [U · levels, d]
        place = torch.searchsorted(items, self.item(ids).clamp(min=0)).clamp(max=len(items) - 1)
        level = (ids - self.vocabulary.size) % self.levels
        found = table[(place * self.levels + level).to(device)]
        return torch.where(opened.unsqueeze(-1).to(device), found, rows)
