"""The popularity of items: the answer of last resort when the model cannot answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.trie.allowed import Allowed

_FIRST_LOOK = 256


@dataclass(frozen=True, eq=False)
class Popularity:
    """Items from the most popular to the least popular.

    order: int64 [items], catalogue rows, the most popular first, ties by row.
    scores: float64 [items], by row: log((count + 1) / (sum of counts + items)), the share of the interactions after one
    interaction is added to each item.
    """

    order: NDArray[np.int64]
    scores: NDArray[np.float64]

    @classmethod
    def of(cls, counts: NDArray[np.integer], items: int) -> Popularity:
        """Build the order from counts.

        counts: int [rows], interactions by row. Later rows count 0.
        items: number of rows of the catalogue.
        """
        padded = np.zeros(items)
        padded[: len(counts)] = counts
        return cls(np.argsort(-padded, kind="stable"), np.log((padded + 1) / (padded.sum() + items)))

    def best(self, allowed: Allowed, limit: int) -> tuple[list[int], list[float]]:
        """Return the most popular allowed rows, at most `limit`, and their scores."""
        found: list[int] = []
        start, look = 0, _FIRST_LOOK
        while start < len(self.order) and len(found) < limit:
            rows = self.order[start : start + look]
            found += allowed.of_rows(rows).tolist()
            start, look = start + look, 2 * look  # doubling: a narrow filter needs few rounds
        found = found[:limit]
        return found, self.scores[found].tolist()
