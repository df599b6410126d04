"""Item-to-item transitions: what people took soon after an item, in the training log.

    t_ij = Σ w / (n_i + SHRINKAGE)      over pairs of events of a person, at most `WINDOW` apart; n_i: events of item i
           w = 1 / distance if j comes after i, and BACKWARD / distance if it comes before
    s_j  = Σ_k DECAY^k t_{i_k, j}       over the items i_0, i_1, … of a history, the latest first

Of each item the `FOLLOWERS` largest t_ij are kept. They say little about a person's taste and much about what goes
together; a small model trained on few logs has not learned all of it.

    offsets.npy      int64 [items + 1], the range of each item in the other files
    followers.npy    int32, rows, ascending within an item
    weights.npy      float32, t_ij
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.pool.arrays import read_numbers, read_offsets, read_places
from index.trie.trie import ranges

WINDOW = 3  # events
BACKWARD = 0.25
SHRINKAGE = 10.0  # events
DECAY = 0.7
FOLLOWERS = 64  # of an item at most
LAST_ITEMS = 20  # of a history that count
DECAYS = DECAY ** np.arange(LAST_ITEMS)  # of each of them, the latest first


@dataclass(frozen=True, eq=False)
class Transitions:
    """The followers of each item: offsets int64 [items + 1], followers int32 and weights float32 of all items."""

    offsets: NDArray[np.int64]
    followers: NDArray[np.int32]
    weights: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.offsets.nbytes + self.followers.nbytes + self.weights.nbytes

    @classmethod
    def build(
        cls, histories: Iterable[Sequence[int]], items: int, most: int | None = FOLLOWERS
    ) -> Transitions:
        """Count the transitions of a log.

        histories: catalogue rows of each person's events, oldest first.
        most: followers that are kept of an item; None for all.
        """
        events = [np.asarray(history, np.int64) for history in histories]
        counts = np.bincount(np.concatenate([np.empty(0, np.int64), *events]), minlength=items)
        first, later, weight = _pairs(events)
        pairs, place = np.unique(first * items + later, return_inverse=True)
        total = np.bincount(place, weight, minlength=len(pairs))
        owner, follower = np.divmod(pairs, items)
        weights = (total / (counts[owner] + SHRINKAGE)).astype(np.float32)
        kept = _leaders(owner, weights, most) if most is not None else np.arange(len(owner))
        offsets = np.searchsorted(owner[kept], np.arange(items + 1))
        return cls(offsets.astype(np.int64), follower[kept].astype(np.int32), weights[kept])

    def after(
        self, history: Sequence[int] | NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return what may come after a history: rows int64, ascending, each once, and their scores, float64.

        history: catalogue rows, oldest first.
        """
        last = np.asarray(history[: -LAST_ITEMS - 1 : -1], np.int64)  # the latest first
        owner, place = ranges(self.offsets[last], self.offsets[last + 1])
        weights = DECAYS[owner] * self.weights[place]
        rows, place = np.unique(self.followers[place], return_inverse=True)
        return rows.astype(np.int64), np.bincount(place, weights, minlength=len(rows)).astype(np.float64)

    def updated(self, later: int) -> Transitions:
        """Return the transitions of a catalogue with later rows, which follow nothing."""
        return replace(self, offsets=np.pad(self.offsets, (0, later), mode="edge"))

    def save(self, folder: Path) -> None:
        """Write the arrays into a new folder."""
        folder.mkdir()
        np.save(folder / "offsets.npy", self.offsets)
        np.save(folder / "followers.npy", self.followers)
        np.save(folder / "weights.npy", self.weights)

    @classmethod
    def open(cls, folder: Path, items: int) -> Transitions:
        """Read what `save` wrote. Raises `ValueError` that names the file."""
        followers = read_places(folder / "followers.npy", None, items)
        weights = read_numbers(folder / "weights.npy", np.float32, (len(followers),))
        if len(weights) and weights.min() < 0:
            raise ValueError(f"{folder / 'weights.npy'} is damaged: its numbers must not be negative")
        return cls(read_offsets(folder / "offsets.npy", items, len(followers)), followers, weights)


def _pairs(
    events: Sequence[NDArray[np.int64]],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the two items of each pair, and its weight. events: rows of each person."""
    nothing = np.empty(0, np.int64)
    parts = [(nothing, nothing, np.empty(0))]
    for distance in range(1, WINDOW + 1):
        before = np.concatenate([nothing, *(rows[:-distance] for rows in events)])
        after = np.concatenate([nothing, *(rows[distance:] for rows in events)])
        parts.append((before, after, np.full(len(before), 1 / distance)))
        parts.append((after, before, np.full(len(before), BACKWARD / distance)))
    first, later, weight = (np.concatenate(side) for side in zip(*parts, strict=True))
    return first, later, weight


def _leaders(owner: NDArray[np.int64], weights: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """Return the places of the `most` largest weights of each owner, ascending. owner: ascending."""
    order = np.lexsort((-weights, owner))
    begin = np.searchsorted(owner, owner[order])
    return np.sort(order[np.arange(len(order)) - begin < most])
