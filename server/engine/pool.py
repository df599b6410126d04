"""The pool of one request: items that are scored exactly besides the beam.

    score(item) = Σ_j log p(code j | prompt, codes before it)        over the first levels, up to the end of a spelling

All prefixes of these items are known before the search begins. Items share prefixes, and each is scored once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.trie.trie import Trie


class Pool:
    """The prefixes of a pool's items, and the items' scores so far.

    nodes: trie nodes on the way to each item, by depth, int64 [items, levels + 1]; column 0 is the root.
    codes: the codes that lead to them, int64 [items, levels].
    scores: summed log-probabilities, float64 [items].
    """

    def __init__(self, rows: Sequence[int], trie: Trie, levels: int, end: int | None) -> None:
        """Look the items up.

        rows: catalogue rows.
        levels: number of codes that are scored.
        end: code of the end of a shorter identifier, after which all is certain; None if there is none.
        """
        items = len(rows)
        self.nodes = np.zeros((items, levels + 1), np.int64)
        self.codes = np.zeros((items, levels), np.int64)
        self.scores = np.zeros(items)
        self._open = np.ones((items, levels), bool)  # whether an item has this code still to be written
        if not items:  # most requests: nothing is read from the trie
            return
        slots = trie.slot_of_item[np.asarray(rows, np.int64)]
        for level, code in enumerate(trie.code[:levels]):
            below = trie.node_at(level + 1, slots)
            self.nodes[:, level + 1], self.codes[:, level] = below, code[below]
        if end is not None:
            self._open[:, 1:] = self.codes[:, :-1] != end

    def prefixes(self, depth: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the distinct nodes of a depth that are not the end of an identifier, ascending, int64 [n].

        The second array, int64 [n], has for each the place in the pool of an item below it.
        """
        items = np.flatnonzero(self._open[:, depth])
        if not len(items):
            return items, items
        nodes, first = np.unique(self.nodes[items, depth], return_index=True)
        return nodes, items[first]

    def add(self, level: int, log_probs: NDArray[np.float32]) -> None:
        """Add the scores of the codes of a level.

        log_probs: float32 [n, codebook], log p(code | prefix) for the nodes that `prefixes(level)` returns.
        """
        items = np.flatnonzero(self._open[:, level])
        if len(items):
            row = np.unique(self.nodes[items, level], return_inverse=True)[1]
            self.scores[items] += log_probs[row, self.codes[items, level]]
