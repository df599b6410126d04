"""Ranking metrics for cases with one relevant item each.

With r the 1-based rank of the relevant item; every metric is 0 if the item is not among the first k:

    Hit@k  = [r ≤ k]
    NDCG@k = 1 / log2(r + 1)     (the ideal DCG is 1)
    MRR@k  = 1 / r
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (5, 10, 50)
NAMES = tuple(f"{metric}@{k}" for metric in ("hit", "ndcg", "mrr") for k in CUTOFFS)


def per_case(ranks: NDArray[np.integer]) -> dict[str, NDArray[np.float64]]:
    """Return every metric of every case: name → float64 [cases].

    ranks: int [cases], 1-based, 0 if the item was not ranked.
    """
    found = ranks > 0
    r = np.maximum(ranks, 1).astype(np.float64)
    values: dict[str, NDArray[np.float64]] = {}
    for k in CUTOFFS:
        inside = found & (ranks <= k)
        values[f"hit@{k}"] = inside.astype(np.float64)
        values[f"ndcg@{k}"] = np.where(inside, 1 / np.log2(r + 1), 0.0)
        values[f"mrr@{k}"] = np.where(inside, 1 / r, 0.0)
    return {name: values[name] for name in NAMES}
