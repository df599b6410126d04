"""The calibration of relevance: do items with relevance p get taken in a share p of the cases?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BINS = 10


def calibration_error(relevance: NDArray[np.float64], taken: NDArray[np.bool_]) -> float:
    """Return the expected calibration error (Naeini et al., AAAI 2015) over bins of equally many items.

    relevance: of each returned item, float64 [n]. taken: whether it was the target, bool [n].

        ECE = Σ_b (n_b / n) |mean relevance in b − share taken in b|
    """
    if not len(relevance):
        return 0.0
    order = np.argsort(relevance, kind="stable")
    parts = np.array_split(order, min(BINS, len(order)))
    apart = [len(part) * abs(relevance[part].mean() - taken[part].mean()) for part in parts]
    return float(sum(apart) / len(order))


def first_items(
    rows: Sequence[Sequence[int]], relevance: Sequence[Sequence[float]], targets: Sequence[int], k: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the relevance of the first `k` items of every ranking, and whether each is the target of its case."""
    shares = [share for shares in relevance for share in shares[:k]]
    taken = [row == target for some, target in zip(rows, targets, strict=True) for row in some[:k]]
    return np.array(shares, np.float64), np.array(taken, bool)
