"""A set of small integers as a bitset that counts the members before a position in constant time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.files import read_array

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

    def equals(self, other: RankedBits) -> bool:
        """Whether it is the same set, counted in the same way."""
        return np.array_equal(self.words, other.words) and np.array_equal(self.before, other.before)

    def save(self, folder: Path, name: str) -> None:
        """Write `NAME_words.npy` and `NAME_before.npy`."""
        np.save(folder / f"{name}_words.npy", self.words)
        np.save(folder / f"{name}_before.npy", self.before)

    @classmethod
    def open(cls, folder: Path, name: str) -> RankedBits:
        """Read what `save` wrote. Raises `ValueError` that names the file."""
        return cls(
            read_array(folder / f"{name}_words.npy", np.uint64),
            read_array(folder / f"{name}_before.npy", np.int32),
        )

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
