"""All identifiers as a prefix tree, packed into flat arrays (DESIGN §4).

Nodes of a depth are numbered breadth-first, so that *an edge's index is its child's id*:

    depth 0: the root, node 0
    children of node v at depth j:  edges first_edge[j][v] .. first_edge[j][v + 1] - 1,
                                    and edge e leads to node e at depth j + 1
    code[j][e]: the code written by edge e; ascending among the children of one node

Leaves (nodes at depth L) are therefore sorted by identifier, and every node covers one contiguous
range of leaves. A leaf holds the items `leaf_items[leaf_first[l] : leaf_first[l + 1]]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class TrieError(ValueError):
    """The identifiers cannot form a trie, or the stored arrays do not fit each other."""


@dataclass(frozen=True, eq=False)
class Trie:
    """code: per level, uint16 or uint32 [edges]; first_edge: per level, int32 [nodes + 1];
    leaf_first: int32 [leaves + 1]; leaf_items: int32 [items].
    """

    code: tuple[NDArray[np.unsignedinteger], ...]
    first_edge: tuple[NDArray[np.int32], ...]
    leaf_first: NDArray[np.int32]
    leaf_items: NDArray[np.int32]

    @property
    def levels(self) -> int:
        return len(self.code)

    @property
    def leaves(self) -> int:
        return len(self.leaf_first) - 1

    @property
    def items(self) -> int:
        return len(self.leaf_items)

    @classmethod
    def build(cls, codes: NDArray[np.integer]) -> Trie:
        """Trie over identifiers, int [N, L] (row = item). Items with one identifier share a leaf.

        Raises `TrieError` for an empty table, negative codes, or codes of 2³² and above.
        """
        if codes.ndim != 2 or 0 in codes.shape:
            raise TrieError(f"identifiers must be a non-empty table [items, levels], got shape {codes.shape}")
        if codes.min() < 0 or codes.max() >= 2**32:
            raise TrieError("codes must lie in 0 … 2³²−1")
        items, levels = codes.shape
        order = np.lexsort(codes.T[::-1])  # stable: items of one leaf stay in catalogue order
        table = codes[order]
        code: list[NDArray[np.unsignedinteger]] = []
        first_edge: list[NDArray[np.int32]] = []
        starts = np.array([0])  # first sorted row below each node of the current depth
        new = np.zeros(items, bool)  # whether a sorted row begins a new node
        new[0] = True
        for level in range(levels):
            new[1:] |= table[1:, level] != table[:-1, level]
            children = np.flatnonzero(new)
            width = np.uint16 if table[:, level].max() < 2**16 else np.uint32
            code.append(table[children, level].astype(width))
            first_edge.append(np.append(np.searchsorted(children, starts), len(children)).astype(np.int32))
            starts = children
        return cls(
            tuple(code), tuple(first_edge), np.append(starts, items).astype(np.int32), order.astype(np.int32)
        )

    def expand(
        self, depth: int, nodes: NDArray[np.integer]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """All children of a batch of nodes of one depth.

        Returns (parent, child, code), each int64 [edges]: position in `nodes`, node id at
        depth + 1, and code written. Ordered by position in `nodes`, then by code.
        """
        first = self.first_edge[depth]
        begin = first[nodes].astype(np.int64)
        count = first[np.asarray(nodes) + 1] - begin
        parent = np.repeat(np.arange(len(count)), count)
        within = np.arange(len(parent)) - np.repeat(np.cumsum(count) - count, count)
        child = begin[parent] + within
        return parent, child, self.code[depth][child].astype(np.int64)

    def leaf_range(
        self, depth: int, nodes: NDArray[np.integer]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Leaves [lo, hi) below each node of a depth; int64, same shape as `nodes`."""
        lo, hi = np.asarray(nodes, np.int64), np.asarray(nodes, np.int64) + 1
        for first in self.first_edge[depth:]:
            lo, hi = first[lo].astype(np.int64), first[hi].astype(np.int64)
        return lo, hi

    def blocked_leaves(self, excluded: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
        """Sorted leaves of which *every* item is excluded: int64. `excluded` holds catalogue rows."""
        rows = np.unique(np.asarray(excluded, np.int64))
        leaf, count = np.unique(self.leaf_of_item[rows], return_counts=True)
        blocked: NDArray[np.int64] = leaf[count == np.diff(self.leaf_first)[leaf]]
        return blocked

    def alive(self, depth: int, nodes: NDArray[np.integer], blocked: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether any leaf below each node is not among the sorted `blocked` leaves."""
        lo, hi = self.leaf_range(depth, nodes)
        inside = np.searchsorted(blocked, hi) - np.searchsorted(blocked, lo)
        return inside < hi - lo

    @cached_property
    def leaf_of_item(self) -> NDArray[np.int64]:
        """Leaf of each item: int64 [items]."""
        leaf = np.empty(self.items, np.int64)
        leaf[self.leaf_items] = np.repeat(np.arange(self.leaves), np.diff(self.leaf_first))
        return leaf

    def items_of(self, leaf: int) -> NDArray[np.int32]:
        """Catalogue rows of the items on a leaf, ascending."""
        return self.leaf_items[self.leaf_first[leaf] : self.leaf_first[leaf + 1]]

    def save(self, folder: Path) -> None:
        """Write `code_J.npy`, `first_edge_J.npy`, `leaf_first.npy` and `leaf_items.npy`."""
        folder.mkdir(parents=True, exist_ok=True)
        for level in range(self.levels):
            np.save(folder / f"code_{level}.npy", self.code[level])
            np.save(folder / f"first_edge_{level}.npy", self.first_edge[level])
        np.save(folder / "leaf_first.npy", self.leaf_first)
        np.save(folder / "leaf_items.npy", self.leaf_items)

    @classmethod
    def open(cls, folder: Path) -> Trie:
        """Memory-map a stored trie. Raises `TrieError` if its arrays do not fit each other."""

        def read(name: str) -> NDArray[Any]:
            try:
                array: NDArray[Any] = np.load(folder / name, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise TrieError(f"{folder / name} cannot be read: {error}") from error
            return array

        levels = len(list(folder.glob("code_*.npy")))
        trie = cls(
            tuple(read(f"code_{level}.npy") for level in range(levels)),
            tuple(read(f"first_edge_{level}.npy") for level in range(levels)),
            read("leaf_first.npy"),
            read("leaf_items.npy"),
        )
        nodes = 1
        for level in range(levels):
            edges = len(trie.code[level])
            if len(trie.first_edge[level]) != nodes + 1 or trie.first_edge[level][-1] != edges:
                raise TrieError(f"{folder}: the arrays of level {level} do not fit each other")
            nodes = edges
        if not levels or trie.leaves != nodes or trie.leaf_first[-1] != trie.items:
            raise TrieError(f"{folder}: the leaf arrays do not fit the trie")
        return trie

    def codes(self) -> NDArray[np.int64]:
        """The identifiers that the trie was built from: int64 [items, levels]."""
        table = np.empty((self.leaves, self.levels), np.int64)
        node = np.arange(self.leaves)
        for level in reversed(range(self.levels)):
            table[:, level] = self.code[level][node]
            node = np.searchsorted(self.first_edge[level], node, side="right") - 1
        return table[self.leaf_of_item]
