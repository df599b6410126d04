"""The largest of many numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.floating] | NDArray[np.integer]


def largest(keys: Sequence[Numbers], limit: int) -> NDArray[np.int64]:
    """Return the places of the `limit` largest, by the first key, ties by the next, then by place; in that order.

    keys: arrays of one length, without NaN. The result is int64.
    """
    places = _largest(keys, np.arange(len(keys[0])), limit)
    return places[np.lexsort([places, *(-key[places] for key in reversed(keys))])]


def _largest(keys: Sequence[Numbers], places: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return the `limit` largest of some places, ascending ones, in any order."""
    if len(places) <= limit or not keys or not limit:
        return places[:limit]
    key = keys[0][places]
    least = np.partition(key, len(key) - limit)[len(key) - limit]
    above, equal = places[key > least], places[key == least]
    return np.concatenate([above, _largest(keys[1:], equal, limit - len(above))])
