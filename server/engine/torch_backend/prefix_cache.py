"""The prefix cache: keys and values of earlier prompts, so that a person's next request computes only new tokens.

Both endpoints have the history as prefix of their prompts. An entry is found by the longest prefix that it shares with
a prompt; the least recently used entries are dropped when the bytes are used up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

BLOCK = 16  # tokens; prefixes are indexed at its multiples
COMPARED = 8  # entries with the same blocks that are compared token by token

_Ids = tuple[int, ...]


@dataclass(eq=False, slots=True)
class _Entry:
    """One prompt. states: [layers, 2, kv heads, tokens, d]; blocks: hashes of its prefixes of whole blocks."""

    ids: _Ids
    states: Tensor
    blocks: list[int]


class PrefixCache:
    """A least-recently-used cache, limited by bytes. capacity: bytes of keys and values; 0 keeps none."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.bytes = 0
        self._entries: OrderedDict[_Ids, _Entry] = OrderedDict()  # by tokens, oldest first
        # Entries that begin with these blocks, newest last.
        self._by_block: dict[int, dict[_Ids, _Entry]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def longest(self, ids: Sequence[int]) -> Tensor | None:
        """Return the states of the longest cached prefix that leaves one token to compute; None if there is none.

        The states are [layers, 2, kv heads, n, d]. Of many entries with the same blocks, only the newest are compared.
        """
        for key in reversed(list(_blocks(ids))):
            candidates = islice(reversed(self._by_block.get(key, {}).values()), COMPARED)
            best = max(candidates, key=lambda entry: _shared(entry.ids, ids), default=None)
            shared = 0 if best is None else _shared(best.ids, ids)
            if best is not None and shared >= BLOCK:  # else two prefixes of one hash
                self._entries.move_to_end(best.ids)
                return best.states[:, :, :, : min(shared, len(ids) - 1)]
        return None

    def put(self, ids: Sequence[int], states: Tensor) -> None:
        """Store the states of a prompt, [layers, 2, kv heads, len(ids), d]; entries that are its prefixes go."""
        entry = _Entry(tuple(ids), states, list(_blocks(ids)))
        size = states.nbytes
        if size > self.capacity or not entry.blocks:
            return
        for known in [e for key in entry.blocks for e in self._by_block.get(key, {}).values()]:
            if known.ids in self._entries and known.ids == entry.ids[: len(known.ids)]:
                self._drop(known)
        while self.bytes + size > self.capacity:
            self._drop(next(iter(self._entries.values())))
        self._entries[entry.ids] = entry
        for key in entry.blocks:
            self._by_block.setdefault(key, {})[entry.ids] = entry
        self.bytes += size

    def clear(self) -> None:
        """Drop all entries."""
        self._entries.clear()
        self._by_block.clear()
        self.bytes = 0

    def _drop(self, entry: _Entry) -> None:
        del self._entries[entry.ids]
        self.bytes -= entry.states.nbytes
        for key in entry.blocks:
            del self._by_block[key][entry.ids]
            if not self._by_block[key]:
                del self._by_block[key]


def _blocks(ids: Sequence[int]) -> Iterator[int]:
    """Yield hashes of the prefixes of one block, two blocks, …"""
    key = 0
    for end in range(BLOCK, len(ids) + 1, BLOCK):
        key = hash((key, *ids[end - BLOCK : end]))
        yield key


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the number of tokens that two sequences share from the start."""
    for position, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return position
    return min(len(one), len(other))
