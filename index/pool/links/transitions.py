"""Item-to-item transitions: what people took soon after an item, in the training log.

    t_ij = Σ w / (n_i + SHRINKAGE)      over pairs of events of a person, at most `WINDOW` apart; n_i: events of item i
           w = 1 / distance if j comes after i, and BACKWARD / distance if it comes before
    s_j  = Σ_k DECAY^k t_{i_k, j}       over the items i_0, i_1, … of a history, the latest first

They say little about a person's taste and much about what goes together; a small model trained on few logs has not
learned all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from index.pool.links.item_links import FOLLOWERS, ItemLinks

WINDOW = 3  # events
BACKWARD = 0.25
SHRINKAGE = 10.0  # events
DECAY = 0.7
LAST_ITEMS = 20  # of a history that count


@dataclass(frozen=True, eq=False)
class Transitions(ItemLinks):
    """The links of items to what was taken soon after them."""

    FACTORS: ClassVar[NDArray[np.float64]] = np.power(DECAY, np.arange(LAST_ITEMS))

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
        return cls.of(items, owner, follower, (total / (counts[owner] + SHRINKAGE)).astype(np.float32), most)

    @classmethod
    def open(cls, folder: Path, items: int) -> Transitions:
        """Read what `save` wrote. Raises `ValueError` that names the file."""
        found = super().open(folder, items)
        if len(found.weights) and found.weights.min() < 0:
            raise ValueError(f"{folder / 'weights.npy'} is damaged: its numbers must not be negative")
        return found


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
