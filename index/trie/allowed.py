"""Which items may come back: known before the beam chooses, so that it never runs into a dead end.

Every node of the trie covers a contiguous range of slots [lo, hi) (see `Trie`). With a set of chosen slots as
ranked bits, a node is alive iff rank(hi) > rank(lo) (DESIGN §4). A few excluded slots need no bits: a
node is dead iff those within its range fill it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from index.trie.ranked_bits import RankedBits
from index.trie.trie import Trie, ranges

Children = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class SlotSet:
    """Chosen slots of `total`. bits: over all slots; members: the same, int32, ascending."""

    total: int
    bits: RankedBits
    members: NDArray[np.int32]

    @classmethod
    def of(cls, member: NDArray[np.bool_]) -> SlotSet:
        """The slots where `member`, bool [slots], is true."""
        return cls(len(member), RankedBits.of(member), np.flatnonzero(member).astype(np.int32))

    @classmethod
    def of_members(cls, slots: NDArray[np.integer], total: int) -> SlotSet:
        """Some of so many slots, in any order, repeated or not."""
        member = np.zeros(total, bool)
        member[slots] = True
        return cls.of(member)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes + self.members.nbytes

    def __and__(self, other: SlotSet) -> SlotSet:
        few, many = sorted((self, other), key=len)
        slots = few.members[many.bits.holds(few.members.astype(np.int64))]
        return SlotSet.of_members(slots, self.total)


@dataclass(frozen=True, eq=False)
class Allowed:
    """The slots of `chosen` (None: all) but for the `excluded` ones: int64, ascending, of `chosen` only."""

    trie: Trie
    chosen: SlotSet | None
    excluded: NDArray[np.int64]

    @classmethod
    def of(cls, trie: Trie, chosen: SlotSet | None = None, excluded: Sequence[int] = ()) -> Allowed:
        """chosen: slots of this trie. excluded: catalogue rows, in any order, repeated or not."""
        slots = np.empty(0, np.int64)
        if len(excluded):
            slots = np.unique(trie.slot_of_item[np.asarray(excluded, np.int64)]).astype(np.int64)
        if chosen is not None:
            slots = slots[chosen.bits.holds(slots)]
        return cls(trie, chosen, slots)

    def without(self, rows: Sequence[int]) -> Allowed:
        """The same but for these catalogue rows, in place of those excluded before."""
        return Allowed.of(self.trie, self.chosen, rows)

    @cached_property
    def count(self) -> int:
        """Allowed items."""
        return (self.trie.items if self.chosen is None else len(self.chosen)) - len(self.excluded)

    def holds(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each slot is allowed: bool, same shape."""
        return self._any(slots, slots + 1)

    def alive(self, depth: int, nodes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether an allowed item lies below each node: bool, same shape."""
        return self._any(*self.trie.slots(depth, nodes))

    def expand(self, depth: int, nodes: NDArray[np.int64]) -> Children:
        """As `Trie.expand`, without children below which nothing is chosen; excluded slots are not looked at.

        Costs as much as the smaller of two: the children of the nodes, or the chosen slots below them.
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
        new = np.ones(len(child), bool)  # slots ascend, so that those below one child lie side by side
        new[1:] = (child[1:] != child[:-1]) | (parent[1:] != parent[:-1])
        child = child[new]
        return parent[new], child, trie.code[depth][child].astype(np.int64)

    def _any(self, lo: NDArray[np.int64], hi: NDArray[np.int64]) -> NDArray[np.bool_]:
        left = hi - lo if self.chosen is None else self.chosen.bits.rank(hi) - self.chosen.bits.rank(lo)
        if len(self.excluded):
            left = left - (np.searchsorted(self.excluded, hi) - np.searchsorted(self.excluded, lo))
        return left > 0
