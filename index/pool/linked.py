"""Rows that the history of one request leads to, by the links of the items that it holds.

strength    log(1 + s_j / FEW), s_j: the score of a row, see `ItemLinks`; a negative score counts nothing
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.pool.fusion import LINKS, Link
from index.pool.pool_index import PoolIndex
from index.trie.allowed import Allowed
from index.trie.trie import places_in

FEW = 0.01  # score that counts log 2


@dataclass(frozen=True, eq=False)
class Linked:
    """Rows that a history leads to, by the name of the links: int64, ascending, and their scores, float64."""

    found: Mapping[Link, tuple[NDArray[np.int64], NDArray[np.float64]]]

    @classmethod
    def by(cls, index: PoolIndex, history: Sequence[int]) -> Linked:
        """Follow the links of the known items of a history to known items. Older bundles have fewer links.

        history: catalogue rows, oldest first.
        """
        taken = np.asarray(history, np.int64)
        taken = taken[~index.fresh[taken]]
        found: dict[Link, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        for name, links in zip(LINKS, (index.transitions, index.co_occurrence), strict=True):
            if links is not None:
                rows, scores = links.after(taken)
                known = ~index.fresh[rows]
                found[name] = rows[known], scores[known]
        return cls(found)

    def strength(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how strongly each row is linked, float64 [links, rows]; 0 for one that is not."""
        strengths = np.zeros((len(LINKS), len(rows)))
        for column, name in zip(strengths, LINKS, strict=True):
            if name in self.found:
                ascending, scores = self.found[name]
                place, there = places_in(ascending, rows)
                column[there] = np.log1p(np.maximum(scores[place[there]], 0) / FEW)
        return strengths

    def best(self, allowed: Allowed, most: int, among: NDArray[np.bool_] | None = None) -> dict[int, Link]:
        """Return the rows that all links together speak for most, the first one first, and the strongest links of each.

        among: the rows that may be chosen, bool [items]; None for all.
        """
        rows = np.unique(np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in self.found.values())]))
        if among is not None:
            rows = rows[among[rows]]
        strengths = self.strength(rows)
        total = strengths.sum(axis=0)
        order = np.lexsort((rows, -total))
        chosen = allowed.of_rows(rows[order[total[order] > 0]])[:most]
        strongest = strengths[:, np.searchsorted(rows, chosen)].argmax(axis=0)
        return {row: LINKS[k] for row, k in zip(chosen.tolist(), strongest.tolist(), strict=True)}
