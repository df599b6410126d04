"""How often people chose each item: what to answer with when the model cannot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.trie.allowed import Allowed

_FIRST_LOOK = 256


@dataclass(frozen=True, eq=False)
class Popularity:
    """order: int64 [items], rows from the most popular on, ties by row. scores: float64 [items], by row:
    log((count + 1) / (all counts + items)), the share of interactions with one more of each item."""

    order: NDArray[np.int64]
    scores: NDArray[np.float64]

    @classmethod
    def of(cls, counts: NDArray[np.integer], items: int) -> Popularity:
        """counts: int [rows], interactions by row; rows that came later have none."""
        padded = np.zeros(items)
        padded[: len(counts)] = counts
        return cls(np.argsort(-padded, kind="stable"), np.log((padded + 1) / (padded.sum() + items)))

    def best(self, allowed: Allowed, limit: int) -> tuple[list[int], list[float]]:
        """The most popular allowed rows, at most `limit`, and their scores."""
        found: list[int] = []
        start, look = 0, _FIRST_LOOK
        while start < len(self.order) and len(found) < limit:
            rows = self.order[start : start + look]
            slots = allowed.trie.slot_of_item[rows].astype(np.int64)
            found += rows[allowed.holds(slots)].tolist()
            start, look = start + look, 2 * look  # a narrow filter is found in few looks
        found = found[:limit]
        return found, self.scores[found].tolist()
