"""Offsets of consecutive ranges, in little more than one byte per entry.

    offsets[v] = base[v // 64] + v % 64 + excess[v]

No range is empty, so offsets grow by at least one per entry. Only the growth beyond this, since the last multiple of
64, is stored for each entry. Deep in a trie most nodes have one child, so that one byte is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.files import read_array

BLOCK_BITS = 6
BLOCK = 1 << BLOCK_BITS


@dataclass(frozen=True, eq=False)
class Offsets:
    """Strictly increasing integers.

    base: int32 [ceil(n / 64)].
    excess: uint8, uint16 or uint32 [n].
    """

    base: NDArray[np.int32]
    excess: NDArray[np.unsignedinteger]

    def __len__(self) -> int:
        return len(self.excess)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.base.nbytes + self.excess.nbytes

    @classmethod
    def of(cls, values: NDArray[np.integer]) -> Offsets:
        """Pack values: int [n], strictly increasing, within 0 … 2³¹−1."""
        base = values[::BLOCK]
        within = np.arange(len(values), dtype=values.dtype) & (BLOCK - 1)
        excess = values - np.repeat(base, BLOCK)[: len(values)] - within
        return cls(base.astype(np.int32), excess.astype(np.min_scalar_type(int(excess.max(initial=0)))))

    def __getitem__(self, index: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the values at the given positions: int64, same shape as `index`."""
        value: NDArray[np.int64] = self.base[index >> BLOCK_BITS].astype(np.int64)
        value += index & (BLOCK - 1)
        value += self.excess[index]
        return value

    def spans(self, ranges: int, end: int) -> bool:
        """Whether these are the offsets of `ranges` ranges, none of them empty, that cover 0 … end − 1."""
        if len(self) != ranges + 1 or len(self.base) != -(-len(self) // BLOCK):
            return False
        values = self.values()
        return bool(values[0] == 0 and values[-1] == end and (values[1:] > values[:-1]).all())

    def values(self) -> NDArray[np.int64]:
        """Return all values: int64 [n]."""
        return self[np.arange(len(self))]

    def save(self, folder: Path, name: str) -> None:
        """Write `NAME_base.npy` and `NAME_excess.npy`."""
        np.save(folder / f"{name}_base.npy", self.base)
        np.save(folder / f"{name}_excess.npy", self.excess)

    @classmethod
    def open(cls, folder: Path, name: str) -> Offsets:
        """Read what `save` wrote. Raises `ValueError` that names the file."""
        return cls(
            read_array(folder / f"{name}_base.npy", np.int32),
            read_array(folder / f"{name}_excess.npy", np.uint8, np.uint16, np.uint32),
        )
