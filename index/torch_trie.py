"""The arrays of a `Trie` as torch tensors on a device: the same bytes, the same answers.

PyTorch hardly computes with unsigned integers of 16 bits and more, so that those are kept as signed ones of the same
bits, and widened where they are read. Everything a method takes and returns is int64 or bool and stays on the
device. A batch of nodes is expanded by a fixed number of kernels; the number of children is the only thing that is
waited for, because it is the length of the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.allowed import Allowed
from index.offsets import BLOCK, BLOCK_BITS, Offsets
from index.ranked_bits import WORD, WORD_BITS, RankedBits
from index.trie import Trie

Children = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class _Unsigned:
    """Unsigned integers of `bits` bits, as a tensor of uint8 or of signed integers with the same bits."""

    stored: Tensor
    bits: int

    @classmethod
    def of(cls, values: NDArray[np.unsignedinteger], device: torch.device) -> _Unsigned:
        bits = 8 * values.itemsize
        same = values if bits == 8 else values.view(f"i{values.itemsize}")
        return cls(_on(same, device), bits)

    def __getitem__(self, index: Tensor) -> Tensor:
        values = self.stored[index].long()
        return values if self.bits == 64 else values & ((1 << self.bits) - 1)


@dataclass(frozen=True, eq=False)
class _Offsets:
    base: Tensor  # int32
    excess: _Unsigned

    @classmethod
    def of(cls, offsets: Offsets, device: torch.device) -> _Offsets:
        return cls(_on(offsets.base, device), _Unsigned.of(offsets.excess, device))

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.base[index >> BLOCK_BITS] + (index & (BLOCK - 1)) + self.excess[index]


@dataclass(frozen=True, eq=False)
class _RankedBits:
    words: _Unsigned
    before: Tensor  # int32

    @classmethod
    def of(cls, bits: RankedBits, device: torch.device) -> _RankedBits:
        return cls(_Unsigned.of(bits.words, device), _on(bits.before, device))

    def rank(self, positions: Tensor) -> Tensor:
        word = positions >> WORD_BITS
        below = (torch.ones_like(positions) << (positions & (WORD - 1))) - 1
        return _bit_count(self.words[word] & below) + self.before[word]


@dataclass(frozen=True, eq=False)
class TorchTrie:
    """See `Trie`; made by `of`."""

    code: tuple[_Unsigned, ...]
    first_edge: tuple[_Offsets, ...]
    first_slots: tuple[_RankedBits, ...]
    leaf_first: _Offsets
    slot_items: Tensor  # int32 [items]

    @classmethod
    def of(cls, trie: Trie, device: torch.device | str = "cpu") -> TorchTrie:
        """Copy the arrays to a device."""
        device = torch.device(device)
        return cls(
            tuple(_Unsigned.of(code, device) for code in trie.code),
            tuple(_Offsets.of(first, device) for first in trie.first_edge),
            tuple(_RankedBits.of(first, device) for first in trie.first_slots),
            _Offsets.of(trie.leaf_first, device),
            _on(trie.slot_items, device),
        )

    @property
    def device(self) -> torch.device:
        return self.slot_items.device

    def expand(self, depth: int, nodes: Tensor) -> Children:
        """As `Trie.expand`: parent, child and code, int64 [edges] each. nodes: int64 [n] on the device."""
        begin, end = self.first_edge[depth][nodes], self.first_edge[depth][nodes + 1]
        count = end - begin
        parent = torch.repeat_interleave(count)
        first = begin - (count.cumsum(0) - count)
        child = torch.arange(len(parent), device=nodes.device) + first[parent]
        return parent, child, self.code[depth][child]

    def slots(self, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """As `Trie.slots`: the slots [lo, hi) below each node of a depth, int64."""
        return self._first_slot(depth, nodes), self._first_slot(depth, nodes + 1)

    def node_at(self, depth: int, slots: Tensor) -> Tensor:
        """As `Trie.node_at`: the node of a depth, 1 or more, that covers each slot, int64."""
        return self.first_slots[depth - 1].rank(slots + 1) - 1

    def _first_slot(self, depth: int, nodes: Tensor) -> Tensor:
        for first in self.first_edge[depth:]:
            nodes = first[nodes]
        return self.leaf_first[nodes]


@dataclass(frozen=True, eq=False)
class TorchAllowed:
    """See `Allowed`; made by `of`."""

    trie: TorchTrie
    chosen: _RankedBits | None
    excluded: Tensor  # int64, ascending

    @classmethod
    def of(cls, trie: TorchTrie, allowed: Allowed) -> TorchAllowed:
        """Copy what is allowed to the device of `trie`, which must have been made from the same trie."""
        bits = None if allowed.chosen is None else _RankedBits.of(allowed.chosen.bits, trie.device)
        return cls(trie, bits, _on(allowed.excluded, trie.device))

    def alive(self, depth: int, nodes: Tensor) -> Tensor:
        """As `Allowed.alive`: whether an allowed item lies below each node, bool."""
        lo, hi = self.trie.slots(depth, nodes)
        left = self._chosen(lo, hi)
        return left > torch.searchsorted(self.excluded, hi) - torch.searchsorted(self.excluded, lo)

    def expand(self, depth: int, nodes: Tensor) -> Children:
        """As `Allowed.expand`. Every child is tested: a device has room for that, and none for branches."""
        parent, child, code = self.trie.expand(depth, nodes)
        if self.chosen is None:
            return parent, child, code
        kept = self._chosen(*self.trie.slots(depth + 1, child)) > 0
        return parent[kept], child[kept], code[kept]

    def _chosen(self, lo: Tensor, hi: Tensor) -> Tensor:
        return hi - lo if self.chosen is None else self.chosen.rank(hi) - self.chosen.rank(lo)


def _on(array: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(array)).to(device)  # a copy: stored arrays are read-only


def _bit_count(words: Tensor) -> Tensor:
    """Ones among the 64 bits of each int64 (Hacker's Delight, 5-1; PyTorch has no operation for it)."""
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (words * 0x0101010101010101) >> 56  # at most 64, so that the sign bit is never set
