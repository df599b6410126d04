"""Rows that the history of one request leads to, by the links of the items that it holds.

strength    log(1 + s_j / FEW), s_j: the score of a row, see `ItemLinks`; a negative score counts nothing
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.largest import largest
from index.pool.fusion import LINKS, Link
from index.pool.links.item_links import Followed, ItemLinks, summed
from index.pool.pool_index import PoolIndex
from index.trie.allowed import Allowed
from index.trie.trie import places_in

FEW = 0.01  # score that counts log 2


@dataclass(frozen=True, eq=False)
class Linked:
    """Rows that a history leads to, int64 [n], ascending, and their strengths, float64 [links, n]; 0 without a link."""

    rows: NDArray[np.int64]
    strengths: NDArray[np.float64]

    @classmethod
    def by(cls, index: PoolIndex, history: Sequence[int]) -> Linked:
        """Follow the links of the known items of a history to known items. Older bundles have fewer links.

        history: catalogue rows, oldest first.
        """
        taken = np.asarray(history, np.int64)
        taken = taken[~index.fresh[taken]]
        kinds: Mapping[Link, ItemLinks | None] = {
            "transitions": index.transitions,
            "co_occurrence": index.co_occurrence,
        }
        every = [kinds[name] for name in LINKS]
        found = [_no_links() if links is None else links.followed(taken) for links in every]
        rows, scores = summed(found)
        known = ~index.fresh[rows]
        return cls(rows[known], np.log1p(np.maximum(scores, 0) / FEW)[:, known])

    def strength(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how strongly each row is linked, float64 [links, rows]; 0 for one that is not."""
        strengths = np.zeros((len(LINKS), len(rows)))
        place, there = places_in(self.rows, rows)
        strengths[:, there] = self.strengths[:, place[there]]
        return strengths

    def best(self, allowed: Allowed, most: int, among: NDArray[np.bool_] | None = None) -> dict[int, Link]:
        """Return the rows that all links together speak for most, the first one first, and the strongest links of each.

        among: the rows that may be chosen, bool [items]; None for all.
        """
        total = self.strengths.sum(axis=0)
        wanted = total > 0
        if among is not None:
            wanted &= among[self.rows]
        wanted[wanted] = allowed.holds_rows(self.rows[wanted])
        places = np.flatnonzero(wanted)
        places = places[largest([total[places]], most)]
        strongest = self.strengths[:, places].argmax(axis=0)
        return {row: LINKS[k] for row, k in zip(self.rows[places].tolist(), strongest.tolist(), strict=True)}


def _no_links() -> Followed:
    return np.empty(0, np.int32), np.empty(0)
