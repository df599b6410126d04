"""Codebooks of residual quantisation: from an item's vector to the codes of its identifier.

    r_0 = x − mean;   c_j = argmin_k ‖r_j − b_{j,k}‖²;   r_{j+1} = r_j − b_{j,c_j}

They stay fixed after training, so that an item that comes later is named by the codes the model knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.arrays import read_array


@dataclass(frozen=True, eq=False)
class Codebooks:
    """mean: float32 [d]; levels: b_j, float32 [K_j, d] each."""

    mean: NDArray[np.float32]
    levels: tuple[NDArray[np.float32], ...]

    def quantise(self, vectors: NDArray[np.float32]) -> NDArray[np.int32]:
        """Codes of every level but the one that separates collisions: float32 [N, d] → int32 [N, levels]."""
        residual = vectors - self.mean
        codes = []
        for book in self.levels:
            nearest = _distances(residual, book).argmin(axis=1)
            codes.append(nearest.astype(np.int32))
            residual = residual - book[nearest]
        return np.stack(codes, axis=1)

    def alternatives(self, vector: NDArray[np.float32]) -> NDArray[np.int32]:
        """All codes of the last level for a vector, float32 [d], the nearest first: int32 [K]."""
        residual = vector - self.mean
        for book, code in zip(self.levels[:-1], self.quantise(vector[None])[0], strict=False):
            residual = residual - book[code]
        return np.argsort(_distances(residual[None], self.levels[-1])[0], kind="stable").astype(np.int32)

    def save(self, folder: Path) -> None:
        """Write `mean.npy` and `level_J.npy`."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "mean.npy", self.mean)
        for level, book in enumerate(self.levels):
            np.save(folder / f"level_{level}.npy", book)

    @classmethod
    def open(cls, folder: Path) -> Codebooks:
        """Read what `save` wrote."""
        levels = len(list(folder.glob("level_*.npy")))
        books = tuple(read_array(folder / f"level_{level}.npy") for level in range(levels))
        return cls(read_array(folder / "mean.npy"), books)


def _distances(vectors: NDArray[np.float32], book: NDArray[np.float32]) -> NDArray[np.float32]:
    """‖v − b‖² − ‖v‖²: float32 [N, K]."""
    distances: NDArray[np.float32] = (book**2).sum(axis=1) - 2 * vectors @ book.T
    return distances
