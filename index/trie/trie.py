"""All identifiers as a prefix tree, packed into flat arrays (docs/architecture.md).

The nodes of a depth are numbered breadth-first, so that *the index of an edge is the id of its child*:

    depth 0: the root, node 0
    children of node v at depth j:  edges first_edge[j][v] .. first_edge[j][v + 1] - 1,
                                    and edge e leads to node e at depth j + 1
    code[j][e]: the code written by edge e; ascending among the children of one node

Leaves (nodes at depth L) are therefore sorted by identifier. The items, in the order of their leaves, have consecutive
*slots*: leaf l holds the slots leaf_first[l] .. leaf_first[l + 1] - 1, slot s holds the item slot_items[s], and every
node covers one contiguous range of slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.files import read_array
from index.trie.offsets import Offsets
from index.trie.ranked_bits import RankedBits


class TrieError(ValueError):
    """The identifiers cannot form a trie, or the stored arrays do not fit each other."""


@dataclass(frozen=True, eq=False)
class Trie:
    """The prefix tree of the identifiers of all items.

    code: for each level, uint16 or uint32 [edges].
    first_edge: for each level, offsets [nodes + 1].
    first_slots: for each depth from 1 on, the set of slots at which a node begins.
    leaf_first: offsets [leaves + 1].
    slot_items: int32 [items], the catalogue row of each slot.
    """

    code: tuple[NDArray[np.unsignedinteger], ...]
    first_edge: tuple[Offsets, ...]
    first_slots: tuple[RankedBits, ...]
    leaf_first: Offsets
    slot_items: NDArray[np.int32]

    @property
    def levels(self) -> int:
        """L, the number of codes of an identifier."""
        return len(self.code)

    @property
    def leaves(self) -> int:
        """Number of distinct identifiers."""
        return len(self.leaf_first) - 1

    @property
    def items(self) -> int:
        """Number of items, removed ones included."""
        return len(self.slot_items)

    @property
    def node_bytes(self) -> int:
        """Bytes of the prefix tree without the items."""
        return sum(
            self.code[level].nbytes + self.first_edge[level].nbytes + self.first_slots[level].nbytes
            for level in range(self.levels)
        )

    @property
    def item_bytes(self) -> int:
        """Bytes of the map from leaves to items."""
        return self.leaf_first.nbytes + self.slot_items.nbytes

    @classmethod
    def build(cls, codes: NDArray[np.integer]) -> Trie:
        """Build the trie of identifiers. Items with the same identifier share a leaf.

        codes: int [N, L], one row for each item.
        Raises `TrieError` for an empty table, negative codes, or codes of 2³² and above.
        """
        if codes.ndim != 2 or 0 in codes.shape:
            raise TrieError(f"identifiers must be a non-empty table [items, levels], got shape {codes.shape}")
        if codes.min() < 0 or codes.max() >= 2**32:
            raise TrieError("codes must lie in 0 … 2³²−1")
        columns = [_narrow(codes[:, level]) for level in range(codes.shape[1])]
        order = np.lexsort(columns[::-1])  # stable: items of one leaf stay in catalogue order
        code: list[NDArray[np.unsignedinteger]] = []
        first_edge: list[Offsets] = []
        first_slots: list[RankedBits] = []
        starts = np.array([0])  # first sorted row below each node of the current depth
        new = np.zeros(len(codes), bool)  # whether a sorted row begins a new node
        new[0] = True
        for column in columns:
            column = column[order]
            new[1:] |= column[1:] != column[:-1]
            children = np.flatnonzero(new)
            code.append(column[children])
            first_edge.append(Offsets.of(np.append(np.searchsorted(children, starts), len(children))))
            first_slots.append(RankedBits.of(new))
            starts = children
        return cls(
            tuple(code),
            tuple(first_edge),
            tuple(first_slots),
            Offsets.of(np.append(starts, len(codes))),
            order.astype(np.int32),
        )

    def expand(
        self, depth: int, nodes: NDArray[np.integer]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return all children of a batch of nodes of one depth.

        Returns (parent, child, code), each int64 [edges]: position of the parent in `nodes`, node id of the child at
        depth + 1, and its code. Ordered by position in `nodes`, then by code.
        """
        begin, end = self._edges(depth, nodes)
        parent, child = ranges(begin, end)
        return parent, child, self.code[depth][child].astype(np.int64)

    def child_count(self, depth: int, nodes: NDArray[np.integer]) -> int:
        """Return the number of children of all the nodes together."""
        begin, end = self._edges(depth, nodes)
        return int((end - begin).sum())

    def _edges(self, depth: int, nodes: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        nodes = np.asarray(nodes, np.int64)
        return self.first_edge[depth][nodes], self.first_edge[depth][nodes + 1]

    def slots(self, depth: int, nodes: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the ranges [lo, hi) of slots below nodes of one depth: two int64 arrays, same shape as `nodes`."""
        first = np.asarray(nodes, np.int64)
        return self._first_slot(depth, first), self._first_slot(depth, first + 1)

    def _first_slot(self, depth: int, nodes: NDArray[np.int64]) -> NDArray[np.int64]:
        for first in self.first_edge[depth:]:
            nodes = first[nodes]
        return self.leaf_first[nodes]

    def node_at(self, depth: int, slots: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the node of a depth, 1 or more, that covers each slot: int64, same shape."""
        return self.first_slots[depth - 1].rank(np.asarray(slots, np.int64) + 1) - 1

    @cached_property
    def slot_of_item(self) -> NDArray[np.int32]:
        """Slot of each catalogue row: int32 [items]."""
        slot = np.empty(self.items, np.int32)
        slot[self.slot_items] = np.arange(self.items, dtype=np.int32)
        return slot

    def items_of(self, leaf: int) -> NDArray[np.int32]:
        """Return the catalogue rows of a leaf's items, ascending."""
        first, last = self.leaf_first[np.array([leaf, leaf + 1])]
        return self.slot_items[first:last]

    def codes(self) -> NDArray[np.int64]:
        """Return the identifiers that the trie was built from: int64 [items, levels]."""
        slots = np.asarray(self.slot_of_item, np.int64)
        return np.stack(
            [code[self.node_at(level + 1, slots)].astype(np.int64) for level, code in enumerate(self.code)],
            axis=1,
        )

    def save(self, folder: Path) -> None:
        """Write every array as a `.npy` file."""
        folder.mkdir(parents=True, exist_ok=True)
        for level in range(self.levels):
            np.save(folder / f"code_{level}.npy", self.code[level])
            self.first_edge[level].save(folder, f"first_edge_{level}")
            self.first_slots[level].save(folder, f"first_slots_{level + 1}")
        self.leaf_first.save(folder, "leaf_first")
        np.save(folder / "slot_items.npy", self.slot_items)

    @classmethod
    def open(cls, folder: Path, *, checked: bool = False) -> Trie:
        """Read a stored trie into memory.

        checked: whether another process has opened these files before, so that `check` is spared.
        Raises `TrieError` if a file is missing or the arrays do not form a trie.
        """
        levels = len(list(folder.glob("code_*.npy")))
        try:
            trie = cls(
                tuple(read_array(folder / f"code_{k}.npy", np.uint16, np.uint32) for k in range(levels)),
                tuple(Offsets.open(folder, f"first_edge_{level}") for level in range(levels)),
                tuple(RankedBits.open(folder, f"first_slots_{depth}") for depth in range(1, levels + 1)),
                Offsets.open(folder, "leaf_first"),
                read_array(folder / "slot_items.npy", np.int32),
            )
            if not checked:
                trie.check()
        except TrieError as error:
            raise TrieError(f"{folder}: {error}") from error
        except ValueError as error:
            raise TrieError(str(error)) from error
        return trie

    def check(self) -> None:
        """Raise `TrieError` unless the arrays are those of one trie in which each item has one slot."""
        if not self.levels or not self.items:
            raise TrieError("there is no identifier")
        nodes = 1
        for level, (code, first) in enumerate(zip(self.code, self.first_edge, strict=True)):
            if not first.spans(nodes, len(code)):
                raise TrieError(f"the arrays of level {level} do not fit each other")
            if not (code[1:] > code[:-1])[~_members(first.values()[:-1], len(code))[1:]].all():
                raise TrieError(f"codes of level {level} do not ascend below a node")
            nodes = len(code)
        if not self.leaf_first.spans(nodes, self.items):
            raise TrieError("the leaf arrays do not fit the trie")
        first_slot = self.leaf_first.values()
        for depth in range(self.levels, 0, -1):
            if not self.first_slots[depth - 1].equals(RankedBits.of(_members(first_slot[:-1], self.items))):
                raise TrieError(f"the first slots of depth {depth} do not fit the trie")
            first_slot = first_slot[self.first_edge[depth - 1].values()]
        rows = self.slot_items
        if rows.min() < 0 or rows.max() >= len(rows) or not _members(rows, len(rows)).all():
            raise TrieError("slot_items does not hold each item once")


def ranges(begin: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the integers of several ranges [begin, end), one range after the other.

    Returns (range, integer), each int64: the number of the range, and the integer.
    """
    count = end - begin
    owner = np.repeat(np.arange(len(count)), count)
    value = np.arange(len(owner))
    value += np.repeat(begin - (np.cumsum(count) - count), count)
    return owner, value


def places_in(
    ascending: NDArray[np.integer], values: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where each value is in an ascending array, int64 [n], and whether it is there, bool [n].

    A few values are found without a look at the whole array, which `np.isin` would sort.
    """
    place = np.searchsorted(ascending, values).astype(np.int64)
    there = place < len(ascending)
    there[there] = ascending[place[there]] == values[there]
    return place, there


def _members(positions: NDArray[np.integer], total: int) -> NDArray[np.bool_]:
    """Return a mask that is true at the positions: bool [total]."""
    member = np.zeros(total, bool)
    member[positions] = True
    return member


def _narrow(column: NDArray[np.integer]) -> NDArray[np.unsignedinteger]:
    return np.ascontiguousarray(column, np.uint16 if column.max() < 2**16 else np.uint32)
