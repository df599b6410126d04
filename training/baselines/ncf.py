"""Neural matrix factorisation (NeuMF): learns from pairs of user and item, and ignores the order of events.

Source: He et al., *Neural Collaborative Filtering*, arXiv 1708.05031. A user u and an item i each have a vector in both
parts of the model, a generalised product and a perceptron:

    ŷ_ui = wᵀ [ p_u ⊙ q_i ; φ(p'_u, q'_i) ] + b_i,   φ(p, q) = ReLU(W₂ ReLU(A p + B q + c₁) + c₂)

It is trained by binary cross-entropy to distinguish logged items from random ones. The bias b_i of an item is our
addition.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from index.sequence.events import Task
from training.baselines.baseline import Baseline
from training.baselines.settings import NCFSettings
from training.data.dataset import DataSet
from training.data.splits import Case, Split

PAIRS = 200_000  # pairs of user and item that are scored at a time


class NeuMF(nn.Module):
    """The NeuMF model of the formula above."""

    def __init__(self, users: int, items: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.product_users, self.product_items = nn.Embedding(users, width), nn.Embedding(items, width)
        self.inner_users, self.inner_items = nn.Embedding(users, width), nn.Embedding(items, width)
        for table in (self.product_users, self.product_items, self.inner_users, self.inner_items):
            nn.init.normal_(table.weight, std=0.05)
        self.user_in, self.item_in = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.hidden = nn.Linear(width, width // 2)
        self.answer = nn.Linear(width + width // 2, 1, bias=False)
        self.bias = nn.Embedding(items, 1)
        nn.init.zeros_(self.bias.weight)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Return ŷ, float32 [B, n], for users int64 [B, 1] and items int64 [B, n] or [n]."""
        product = self.product_users(users) * self.product_items(items)
        mine, theirs = self.inner_users(users), self.inner_items(items)
        first = F.relu(self.user_in(self._drop(mine)) + self.item_in(self._drop(theirs)))
        inner = F.relu(self.hidden(first))
        answer = self.answer(torch.cat([product, inner], -1)).squeeze(-1)
        total: Tensor = answer + self.bias(items).squeeze(-1)
        return total

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def ncf(settings: NCFSettings, dataset: DataSet, split: Split) -> Baseline:
    """Return NeuMF as a baseline. The split must be leave-one-out, so that every tested user was trained on."""
    known = {
        user_id: row for row, user_id in enumerate(dataset.users.user_ids.to_pylist())
    }  # as in `split.train`
    pairs = torch.tensor([(row, e.item) for row, events in enumerate(split.train) for e in events])
    items = len(dataset.catalogue)
    model = NeuMF(len(known), items, settings.hidden, settings.dropout)

    def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
        """Return pairs of users [B, 1] and items [B, 1 + negatives]: the logged item, then random ones.

        A random item may be one that the user chose; this is rare.
        """
        rng = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
        mixed = pairs[torch.randperm(len(pairs), generator=rng)]
        drawn = torch.randint(items, (len(pairs), settings.negatives), generator=rng)
        asked = torch.cat([mixed[:, 1:], drawn], 1)
        size = settings.batch_size
        return [(mixed[k : k + size, :1], asked[k : k + size]) for k in range(0, len(pairs), size)]

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        answers = model(*batch)
        wanted = torch.zeros_like(answers)
        wanted[:, 0] = 1
        return F.binary_cross_entropy_with_logits(answers, wanted)

    def score(cases: Sequence[Case]) -> NDArray[np.floating]:
        return score_users(model, torch.tensor([known[case.user_id] for case in cases]), items)

    return Baseline(model, settings.epochs, batches, loss_of, {Task.RECOMMENDATION: score})


@torch.inference_mode()
def score_users(model: NeuMF, users: Tensor, items: int) -> NDArray[np.float32]:
    """Return ŷ of users, int64 [B], with every item: float32 [B, items]."""
    every = torch.arange(items)
    size = max(1, PAIRS // items)
    parts = [model(users[k : k + size, None], every) for k in range(0, len(users), size)]
    scores: NDArray[np.float32] = torch.cat(parts).numpy()
    return scores
