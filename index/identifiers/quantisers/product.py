"""Product quantisation: every level codes dimensions of its own (Jégou et al., TPAMI 2011; WebUltron's identifiers).

The leading principal components of the vectors are divided among the levels so that the products of their variances
are as equal as possible (eigenvalue allocation: Ge et al., *Optimized Product Quantization*, CVPR 2013). A level is
k-means on its own components. Its codes are zero elsewhere, so that the residual rule of `codebooks` chooses each
level's code alone: r_j and x agree in the components of level j.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.identifiers.balancing import balance
from index.identifiers.codebooks import Codebooks
from index.identifiers.levels import k_means, sample
from index.identifiers.quantisers.kmeans import principal


def fit(
    vectors: NDArray[np.float32],
    sizes: Sequence[int],
    capacity: float,
    seed: int,
    *,
    behaviour: NDArray[np.float32] | None = None,
) -> Codebooks:
    """Return codebooks for vectors; see `registry.Quantiser`. A level without any component has a single code."""
    vectors = sample(vectors, sizes, seed)
    encoder = principal(vectors, sizes)
    encoded = Codebooks(encoder, (), ()).encode(vectors)
    levels, prices = [], []
    for level, (size, own) in enumerate(zip(sizes, allocate(encoded.var(axis=0), len(sizes)), strict=True)):
        part = encoded[:, own] if len(own) else np.zeros((len(encoded), 1), np.float32)
        codes, price = balance(part, k_means(part, size, seed + level), capacity)
        book = np.zeros((len(codes), encoded.shape[1]), np.float32)
        if len(own):
            book[:, own] = codes
        levels.append(book)
        prices.append(price)
    return Codebooks(encoder, tuple(levels), tuple(prices))


def allocate(variance: NDArray[np.floating], levels: int) -> list[NDArray[np.int64]]:
    """Divide components among levels: each goes to the level with the smallest product of variances that has room.

    variance: of each component, descending; a level takes at most ⌈components / levels⌉.
    Returns the components of each level, ascending.
    """
    room = -(-len(variance) // levels)
    smallest = np.finfo(np.float64).tiny
    logs = np.log(np.maximum(variance.astype(np.float64) / max(float(variance.max()), smallest), smallest))
    logs -= logs.min()  # ≥ 0: a component never makes a product smaller
    held: list[list[int]] = [[] for _ in range(levels)]
    product = np.zeros(levels)
    for component, log in enumerate(logs):
        open_levels = [level for level in range(levels) if len(held[level]) < room]
        level = min(open_levels, key=lambda each: (product[each], len(held[each]), each))
        held[level].append(component)
        product[level] += log
    return [np.array(sorted(each), np.int64) for each in held]
