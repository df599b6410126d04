"""Residual levels of codes for encoded vectors, fitted one after the other: k-means, then balanced codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.identifiers.balancing import balance
from index.identifiers.codebooks import Codebooks, Layer, costs

ITEMS_PER_CODE = 256  # in a large catalogue a sample is enough: more items hardly change the codes
STARTS = 3  # runs of k-means, of which the best is kept


def fit_levels(
    encoder: tuple[Layer, ...],
    vectors: NDArray[np.float32],
    sizes: Sequence[int],
    capacity: float,
    seed: int,
    books: Sequence[NDArray[np.float32]] | None = None,
    among: Sequence[slice] | None = None,
) -> Codebooks:
    """Return codebooks for encoded vectors, fitted level by level.

    encoder: maps d dimensions to h.
    vectors: float32 [N, d].
    books: first codes of each level, float32 [K, h]; None: found by k-means.
    among: components of h that each level codes; its codes are zero elsewhere. None: all.
    """
    residual = Codebooks(encoder, (), ()).encode(vectors)
    levels, prices = [], []
    for level, size in enumerate(sizes):
        own = slice(None) if among is None else among[level]
        part = np.ascontiguousarray(residual[:, own])
        start = k_means(part, size, seed + level) if books is None else books[level][:, own]
        codes, price = balance(part, start, capacity)
        book = np.zeros((len(codes), residual.shape[1]), np.float32)
        book[:, own] = codes
        residual = residual - book[costs(residual, book, price).argmin(axis=1)]
        levels.append(book)
        prices.append(price)
    return Codebooks(encoder, tuple(levels), tuple(prices))


def k_means(vectors: NDArray[np.float32], size: int, seed: int) -> NDArray[np.float32]:
    """Return the centres of k-means, float32 [K, h]; K is `size` or the number of distinct vectors, if smaller."""
    from sklearn.cluster import KMeans  # slow import, only for those who make codes

    distinct = len(np.unique(vectors.round(6), axis=0))
    kmeans = KMeans(min(size, distinct), n_init=STARTS, max_iter=50, random_state=seed).fit(vectors)
    centres: NDArray[np.float32] = kmeans.cluster_centers_.astype(np.float32)
    return centres


def sample(vectors: NDArray[np.float32], sizes: Sequence[int], seed: int) -> NDArray[np.float32]:
    """Return a random sample of the vectors that is large enough for codebooks of these sizes, in the same order."""
    return vectors[sampled_rows(len(vectors), sizes, seed)]


def sampled_rows(count: int, sizes: Sequence[int], seed: int) -> NDArray[np.int64]:
    """Return the rows of `sample` among `count` vectors: int64, ascending."""
    most = ITEMS_PER_CODE * max(sizes)
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
