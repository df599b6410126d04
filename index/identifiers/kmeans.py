"""Residual k-means of the leading principal components of the vectors, with balanced codes.

The number of components: codebooks of K_1, K_2, … codes hold Σ log2 K_j bits. Reverse water-filling (Cover & Thomas,
Elements of Information Theory, 10.3.3) gives the components of a Gaussian that these bits are best spent on: all with a
variance λ above the level θ at which Σ ½ log2(λ / θ) is the number of bits. The other components are noise for the
codes: they would hide the similarities of items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from index.identifiers.balancing import balance
from index.identifiers.codebooks import Codebooks, Layer, costs

ITEMS_PER_CODE = 256  # in a large catalogue a sample is enough: more items hardly change the codes
STARTS = 3  # runs of k-means, of which the best is kept


def fit_kmeans(
    vectors: NDArray[np.float32],
    sizes: Sequence[int],
    capacity: float,
    seed: int,
    *,
    components: int | None = None,
) -> Codebooks:
    """Return codebooks for vectors.

    vectors: float32 [N, d].
    sizes: number of codes of each level. A level with fewer distinct residuals gets fewer codes.
    capacity: see `balance`.
    components: number of principal components that are quantised; None: by water-filling.
    """
    vectors = sample(vectors, sizes, seed)
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - mean
    variance, directions = np.linalg.eigh(centred.T @ centred / len(vectors))
    if components is None:
        components = filled(variance[::-1], float(np.log2(np.asarray(sizes, float)).sum()))
    # a power of two: brings vectors of any length into range without rounding errors
    scale = 2.0 ** np.round(np.log2(max(float(centred.std()), 1e-30)))
    weight = (directions[:, ::-1][:, :components] / scale).astype(np.float32)
    encoder = (Layer(weight, (-mean @ weight).astype(np.float32)),)
    return fit_levels(encoder, vectors, sizes, capacity, seed)


def fit_levels(
    encoder: tuple[Layer, ...],
    vectors: NDArray[np.float32],
    sizes: Sequence[int],
    capacity: float,
    seed: int,
    books: Sequence[NDArray[np.float32]] | None = None,
) -> Codebooks:
    """Return codebooks for encoded vectors, fitted level by level.

    encoder: maps d dimensions to h.
    vectors: float32 [N, d].
    books: first codes of each level, float32 [K, h]; None: found by k-means.
    """
    residual = Codebooks(encoder, (), ()).encode(vectors)
    levels, prices = [], []
    for level, size in enumerate(sizes):
        start = k_means(residual, size, seed + level) if books is None else books[level]
        book, price = balance(residual, start, capacity)
        residual = residual - book[costs(residual, book, price).argmin(axis=1)]
        levels.append(book)
        prices.append(price)
    return Codebooks(encoder, tuple(levels), tuple(prices))


def k_means(vectors: NDArray[np.float32], size: int, seed: int) -> NDArray[np.float32]:
    """Return the centres of k-means, float32 [K, h]; K is `size` or the number of distinct vectors, if smaller."""
    distinct = len(np.unique(vectors.round(6), axis=0))
    kmeans = KMeans(min(size, distinct), n_init=STARTS, max_iter=50, random_state=seed).fit(vectors)
    centres: NDArray[np.float32] = kmeans.cluster_centers_.astype(np.float32)
    return centres


def filled(variance: NDArray[np.floating], bits: float) -> int:
    """Return the number of components that get some of `bits` bits, at least 1. variance: of each, descending."""
    for k in range(1, len(variance)):
        if variance[k] <= 0:
            return k
        level = 2 ** ((np.log2(variance[:k]).sum() - 2 * bits) / k)
        if level >= variance[k]:
            return k
    return len(variance)


def sample(vectors: NDArray[np.float32], sizes: Sequence[int], seed: int) -> NDArray[np.float32]:
    """Return a random sample of the vectors that is large enough for codebooks of these sizes, in the same order."""
    most = ITEMS_PER_CODE * max(sizes)
    if len(vectors) <= most:
        return vectors
    rows = np.random.default_rng(seed).choice(len(vectors), most, replace=False)
    return vectors[np.sort(rows)]
