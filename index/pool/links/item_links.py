"""Links from items to items, each with a weight, and where the last items of a history lead.

s_j = Σ_k f_k w_{i_k, j}     over the items i_0, i_1, … of a history, the latest first

offsets.npy      int64 [items + 1], the range of each item in the other files
followers.npy    int32, the rows that it leads to, ascending within an item
weights.npy      float32, w_ij
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from index.arrays import read_numbers, read_offsets, read_places
from index.trie.trie import ranges

FOLLOWERS = 64  # of an item at most
Rows = Sequence[int] | NDArray[np.int64]
Followed = tuple[NDArray[np.int32], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class ItemLinks:
    """The links of all items: offsets int64 [items + 1], followers int32 and weights float32.

    FACTORS: f, float64 [n]; items of a history before the last n count nothing.
    """

    offsets: NDArray[np.int64]
    followers: NDArray[np.int32]
    weights: NDArray[np.float32]

    FACTORS: ClassVar[NDArray[np.float64]]

    @classmethod
    def of(
        cls,
        items: int,
        owner: NDArray[np.int64],
        follower: NDArray[np.int64],
        weight: NDArray[np.float32],
        most: int | None = FOLLOWERS,
    ) -> Self:
        """Return the links owner → follower, arrays [n], in ascending order of (owner, follower).

        most: links that are kept of an item, those with the largest absolute weights; None for all.
        """
        if most is not None:
            kept = _leaders(owner, np.abs(weight), most)
            owner, follower, weight = owner[kept], follower[kept], weight[kept]
        offsets = np.searchsorted(owner, np.arange(items + 1))
        return cls(offsets.astype(np.int64), follower.astype(np.int32), weight)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.offsets.nbytes + self.followers.nbytes + self.weights.nbytes

    def followed(self, history: Rows) -> Followed:
        """Return every single link of a history's items: the row it leads to, int32, and f_k w_{i_k, j}, float64.

        A row is there once for each item that leads to it; see `summed`. history: catalogue rows, oldest first.
        """
        last = np.asarray(history[: -len(self.FACTORS) - 1 : -1], np.int64)  # the latest first
        owner, place = ranges(self.offsets[last], self.offsets[last + 1])
        return self.followers[place], self.FACTORS[owner] * self.weights[place]

    def after(self, history: Rows) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return where a history leads: rows int64, ascending, each once, and their scores, float64.

        history: catalogue rows, oldest first.
        """
        rows, scores = summed([self.followed(history)])
        return rows, scores[0]

    def updated(self, later: int) -> Self:
        """Return the links of a catalogue with later rows, which have none."""
        return replace(self, offsets=np.pad(self.offsets, (0, later), mode="edge"))

    def save(self, folder: Path) -> None:
        """Write the arrays into a new folder."""
        folder.mkdir()
        np.save(folder / "offsets.npy", self.offsets)
        np.save(folder / "followers.npy", self.followers)
        np.save(folder / "weights.npy", self.weights)

    @classmethod
    def open(cls, folder: Path, items: int) -> Self:
        """Read what `save` wrote. Raises `ValueError` that names the file."""
        followers = read_places(folder / "followers.npy", None, items)
        weights = read_numbers(folder / "weights.npy", np.float32, (len(followers),))
        return cls(read_offsets(folder / "offsets.npy", items, len(followers)), followers, weights)


def summed(found: Sequence[Followed]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the rows of some links, int64 [n], ascending, each once, and their scores s, float64 [kinds, n].

    found: of each kind of links, what `ItemLinks.followed` returns. One sort of all rows is most of the work.
    """
    rows, place = np.unique(np.concatenate([rows for rows, _ in found]), return_inverse=True)
    parts = np.split(place, np.cumsum([len(rows) for rows, _ in found])[:-1])
    scores = [
        np.bincount(part, weights, minlength=len(rows))
        for part, (_, weights) in zip(parts, found, strict=True)
    ]
    return rows.astype(np.int64), np.stack(scores).astype(np.float64)


def _leaders(owner: NDArray[np.int64], weights: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """Return the places of the `most` largest weights of each owner, ascending. owner: ascending."""
    order = np.lexsort((-weights, owner))
    begin = np.searchsorted(owner, owner[order])
    return np.sort(order[np.arange(len(order)) - begin < most])
