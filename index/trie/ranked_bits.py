"""A set of small integers as a bitset that counts the members before a position in constant time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WORD_BITS = 6
WORD = 1 << WORD_BITS


@dataclass(frozen=True, eq=False)
class RankedBits:
    """A subset of 0 … n − 1.

    words: uint64 [n // 64 + 1]; k is bit k % 64 of word k // 64.
    before: int32, same length, number of members before each word.
    """

    words: NDArray[np.uint64]
    before: NDArray[np.int32]

    @classmethod
    def of(cls, member: NDArray[np.bool_]) -> RankedBits:
        """Return the set of positions where `member`, bool [n], is true."""
        padded = np.zeros((len(member) // WORD + 1) * WORD, bool)
        padded[: len(member)] = member
        words = np.packbits(padded, bitorder="little").view(np.uint64)
        count = np.bitwise_count(words)
        return cls(words, np.cumsum(count, dtype=np.int32) - count)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.words.nbytes + self.before.nbytes

    def spans(self, n: int, members: int) -> bool:
        """Whether this is a subset of 0 … n − 1 with `members` members."""
        words = n // WORD + 1
        return len(self.words) == len(self.before) == words and self.rank(np.array([n]))[0] == members

    def save(self, folder: Path, name: str) -> None:
        """Write `NAME_words.npy` and `NAME_before.npy`."""
        np.save(folder / f"{name}_words.npy", self.words)
        np.save(folder / f"{name}_before.npy", self.before)

    def rank(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of members below each position in 0 … n: int64, same shape."""
        word = positions >> WORD_BITS
        below = (np.uint64(1) << (positions & (WORD - 1)).astype(np.uint64)) - np.uint64(1)
        count: NDArray[np.int64] = np.bitwise_count(self.words[word] & below).astype(np.int64)
        count += self.before[word]
        return count

    def holds(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each position in 0 … n − 1 is a member: bool, same shape."""
        bit = self.words[positions >> WORD_BITS] >> (positions & (WORD - 1)).astype(np.uint64)
        member: NDArray[np.bool_] = (bit & np.uint64(1)).astype(bool)
        return member
