"""The items that a request may return: known before the beam search, so that it never runs into a dead end.

Every node of the trie covers a contiguous range of slots [lo, hi) (see `Trie`). The chosen slots are a set of ranked
bits: a node has one below it iff rank(hi) > rank(lo). A few excluded slots need no bits: a node is dead iff they fill
its whole range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from index.trie.ranked_bits import RankedBits
from index.trie.trie import Trie, places_in, ranges

Children = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class SlotSet:
    """A set of slots.

    total: number of all slots of the trie.
    bits: the set as bits over all slots.
    members: the slots of the set, int32, ascending.
    """

    total: int
    bits: RankedBits
    members: NDArray[np.int32]

    @classmethod
    def of(cls, member: NDArray[np.bool_]) -> SlotSet:
        """Return the set of slots where `member`, bool [slots], is true."""
        return cls(len(member), RankedBits.of(member), np.flatnonzero(member).astype(np.int32))

    @classmethod
    def of_members(cls, slots: NDArray[np.integer], total: int) -> SlotSet:
        """Return the set of the given slots, which may repeat, in any order. total: number of all slots."""
        member = np.zeros(total, bool)
        member[slots] = True
        return cls.of(member)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.bits.nbytes + self.members.nbytes

    def __and__(self, other: SlotSet) -> SlotSet:
        few, many = sorted((self, other), key=len)
        slots = few.members[many.bits.holds(few.members.astype(np.int64))]
        return SlotSet.of_members(slots, self.total)


@dataclass(frozen=True, eq=False)
class Allowed:
    """The slots that a request may return.

    chosen: the slots that fit filter and candidates; None for all slots.
    excluded: int64, ascending, slots of `chosen` that must not be returned.
    """

    trie: Trie
    chosen: SlotSet | None
    excluded: NDArray[np.int64]

    @classmethod
    def of(cls, trie: Trie, chosen: SlotSet | None = None, excluded: Sequence[int] = ()) -> Allowed:
        """Return the chosen slots without excluded items.

        chosen: slots of this trie; None for all.
        excluded: catalogue rows, which may repeat, in any order.
        """
        slots = np.empty(0, np.int64)
        if len(excluded):
            slots = np.unique(trie.slot_of_item[np.asarray(excluded, np.int64)]).astype(np.int64)
        if chosen is not None:
            slots = slots[chosen.bits.holds(slots)]
        return cls(trie, chosen, slots)

    def without(self, rows: Sequence[int]) -> Allowed:
        """Return the chosen slots without these catalogue rows, which replace the excluded ones."""
        return Allowed.of(self.trie, self.chosen, rows)

    @cached_property
    def count(self) -> int:
        """Number of allowed items."""
        return (self.trie.items if self.chosen is None else len(self.chosen)) - len(self.excluded)

    def holds(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each slot is allowed: bool, same shape."""
        held = np.ones(slots.shape, bool) if self.chosen is None else self.chosen.bits.holds(slots)
        return held & ~places_in(self.excluded, slots)[1] if len(self.excluded) else held

    def holds_rows(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether each catalogue row is allowed: bool [rows]."""
        return self.holds(self.trie.slot_of_item[rows].astype(np.int64))

    def of_rows(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return those of the catalogue rows that are allowed, in the same order."""
        return np.asarray(rows, np.int64)[self.holds_rows(rows)]

    def alive(self, depth: int, nodes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether an allowed item lies below each node: bool, same shape."""
        return self._any(*self.trie.slots(depth, nodes))

    def expand(self, depth: int, nodes: NDArray[np.int64]) -> Children:
        """Return the children of nodes like `Trie.expand`, without children that have no chosen slot below them.

        Excluded slots are ignored. The cost is proportional to the number of children of the nodes, or to the number of
        chosen slots below them, whichever is smaller.
        """
        trie, chosen = self.trie, self.chosen
        if chosen is None:
            return trie.expand(depth, nodes)
        lo, hi = trie.slots(depth, nodes)
        first, last = chosen.bits.rank(lo), chosen.bits.rank(hi)
        if int((last - first).sum()) >= trie.child_count(depth, nodes):
            parent, child, code = trie.expand(depth, nodes)
            lo, hi = trie.slots(depth + 1, child)
            alive = chosen.bits.rank(hi) > chosen.bits.rank(lo)
            return parent[alive], child[alive], code[alive]
        parent, member = ranges(first, last)
        child = trie.node_at(depth + 1, chosen.members[member])
        new = np.ones(len(child), bool)  # slots ascend: the slots below one child are adjacent
        new[1:] = (child[1:] != child[:-1]) | (parent[1:] != parent[:-1])
        child = child[new]
        return parent[new], child, trie.code[depth][child].astype(np.int64)

    def _any(self, lo: NDArray[np.int64], hi: NDArray[np.int64]) -> NDArray[np.bool_]:
        left = hi - lo if self.chosen is None else self.chosen.bits.rank(hi) - self.chosen.bits.rank(lo)
        if len(self.excluded):
            left = left - (np.searchsorted(self.excluded, hi) - np.searchsorted(self.excluded, lo))
        return left > 0
