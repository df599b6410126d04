"""One step of beam search over a trie, for one request: gather the legal children, then take the best.

Legal first, best second: the beam holds `width` legal hypotheses wherever as many exist, and never
runs into a dead end, because children without an allowed item are dropped before the choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.trie.allowed import Allowed
from index.trie.trie import ranges


@dataclass(frozen=True, slots=True)
class Beam:
    """Hypotheses of one depth, best first.

    nodes: int64 [w], trie nodes. scores: float64 [w], summed log-probabilities.
    parents: int64 [w], position of each hypothesis' parent in the previous beam.
    codes: int64 [w], code written last.
    """

    nodes: NDArray[np.int64]
    scores: NDArray[np.float64]
    parents: NDArray[np.int64]
    codes: NDArray[np.int64]

    @classmethod
    def root(cls) -> Beam:
        zero = np.zeros(1, np.int64)
        return cls(zero, np.zeros(1), zero, zero)

    def at(self, positions: NDArray[np.int64]) -> Beam:
        """Return the hypotheses at these positions."""
        return Beam(
            self.nodes[positions], self.scores[positions], self.parents[positions], self.codes[positions]
        )


def advance(
    depth: int,
    beam: Beam,
    log_probs: NDArray[np.float32],
    row: NDArray[np.int64],
    width: int,
    allowed: Allowed,
) -> Beam:
    """Return the best `width` children of a beam that lead to an allowed item.

    depth: level that is written now.
    log_probs: float32 [rows, codebook], log p(code | hypothesis) for every code of this level.
    row: int64 [w], the row of each hypothesis in `log_probs`; −1 for one that has ended, whose one child is certain.
    Ties go to the smaller node, that is, to leaf order.
    """
    parent, child, code = allowed.expand(depth, beam.nodes)
    score = beam.scores[parent]
    open_ = row[parent] >= 0
    score[open_] += log_probs[row[parent[open_]], code[open_]]
    # At most one node a slot excluded can be dead, so that the best width + excluded hold the answer.
    best = _top(score, child, width + len(allowed.excluded))
    if len(allowed.excluded):
        best = best[allowed.alive(depth + 1, child[best])][:width]
    return Beam(child[best], score[best], parent[best], code[best])


def best_items(
    depth: int, beam: Beam, allowed: Allowed, limit: int, siblings: int = 0
) -> tuple[list[int], list[float]]:
    """Return catalogue rows of allowed items below a beam's nodes, and their scores: best node first, then slot order.

    depth: of the nodes, each of which has an allowed item below it; they need not be leaves.
    limit: number of nodes, and of items, at most.
    siblings: number of items of these nodes that may come in addition.
    """
    trie = allowed.trie
    node, slots = ranges(*trie.slots(depth, beam.nodes[:limit]))
    kept = np.flatnonzero(allowed.holds(slots))[: limit + siblings]
    return trie.slot_items[slots[kept]].tolist(), beam.scores[node[kept]].tolist()


def _top(score: NDArray[np.float64], node: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the positions of the `count` highest scores, best first, ties by ascending node."""
    kept = np.arange(len(score))
    if count < len(score):
        threshold = np.partition(score, len(score) - count)[len(score) - count]
        kept = np.flatnonzero(score >= threshold)
    order = np.lexsort((node[kept], -score[kept]))
    return kept[order][:count]
