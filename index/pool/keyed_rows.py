"""Catalogue rows by the text of a key, of which only a hash is stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.arrays import read_offsets, read_places, read_vector


def hash_of(key: str) -> int:
    """Return the 64-bit BLAKE2b hash of a key, the same on every machine."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")


def distinct(*columns: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the distinct rows of a table, ascending by the first column, then by the next."""
    order = np.lexsort(columns[::-1])
    ordered = [column[order] for column in columns]
    first = firsts(*ordered)
    return [column[first] for column in ordered]


def firsts(*columns: NDArray[Any]) -> NDArray[np.int64]:
    """Return the places at which a table, with equal rows side by side, has a new row."""
    new = np.ones(len(columns[0]), bool)
    new[1:] = False
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(new)


@dataclass(frozen=True, eq=False)
class KeyedRows:
    """Rows of each key.

    hashes: uint64 [keys], ascending.
    first: int64 [keys + 1].
    rows: int32; rows[first[k] : first[k + 1]] are the rows of the key with hashes[k].
    """

    hashes: NDArray[np.uint64]
    first: NDArray[np.int64]
    rows: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.hashes.nbytes + self.first.nbytes + self.rows.nbytes

    @classmethod
    def build(cls, pairs: Iterable[tuple[str, int]]) -> KeyedRows:
        """Build the lists from pairs (key, row); empty keys are left out. The rows of a key ascend, each once."""
        hashed = np.fromiter(
            ((hash_of(key), row) for key, row in pairs if key), [("key", np.uint64), ("row", np.int32)]
        )
        return cls.of(*distinct(hashed["key"], hashed["row"]))

    @classmethod
    def of(cls, hashes: NDArray[np.uint64], rows: NDArray[np.int32]) -> KeyedRows:
        """Build the lists from the hash of each row's key: both [rows], hashes ascending."""
        first = firsts(hashes)
        return cls(hashes[first], np.append(first, len(rows)), np.ascontiguousarray(rows))

    def pairs(self) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """Return the hash of each row's key, and the rows: what `of` is called with."""
        return np.repeat(self.hashes, np.diff(self.first)), self.rows

    def range_of(self, key: str) -> slice:
        """Return the range of `rows` that a key has; empty for an unknown key."""
        wanted = np.uint64(hash_of(key))
        k = int(np.searchsorted(self.hashes, wanted))
        if k == len(self.hashes) or self.hashes[k] != wanted:
            return slice(0, 0)
        return slice(int(self.first[k]), int(self.first[k + 1]))

    def of_key(self, key: str) -> NDArray[np.int32]:
        """Return the rows of a key."""
        return self.rows[self.range_of(key)]

    def save(self, folder: Path, name: str) -> None:
        """Write `NAME_hashes.npy`, `NAME_first.npy` and `NAME_rows.npy`."""
        np.save(folder / f"{name}_hashes.npy", self.hashes)
        np.save(folder / f"{name}_first.npy", self.first)
        np.save(folder / f"{name}_rows.npy", self.rows)

    @classmethod
    def open(cls, folder: Path, name: str, items: int) -> KeyedRows:
        """Read what `save` wrote. items: number of rows of the catalogue.

        Raises `ValueError` with the name of the file that is missing or damaged.
        """
        hashes = read_vector(folder / f"{name}_hashes.npy", np.uint64)
        if (hashes[1:] <= hashes[:-1]).any():
            raise ValueError(f"{folder / name}_hashes.npy is damaged: its numbers must ascend")
        rows = read_places(folder / f"{name}_rows.npy", None, items)
        return cls(hashes, read_offsets(folder / f"{name}_first.npy", len(hashes), len(rows)), rows)
