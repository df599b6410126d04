"""Residual k-means of the leading principal components of the vectors, with balanced codes.

How many components: codebooks of K_1, K_2, … can tell Σ log2 K_j bits. Reverse water-filling (Cover & Thomas,
Elements of Information Theory, 10.3.3) says which components of a Gaussian so many bits are best spent on: those
whose variance λ exceeds the level θ where Σ ½ log2(λ / θ) is the number of bits. The others are noise to
the codes: they would drown what items have in common.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from index.identifiers.balancing import balance
from index.identifiers.codebooks import Codebooks, Layer, costs

ITEMS_PER_CODE = 256  # more do not move the codes of a large catalogue noticeably, so that a sample will do
STARTS = 3  # of k-means, the best of which is taken


def fit_kmeans(
    vectors: NDArray[np.float32],
    sizes: Sequence[int],
    capacity: float,
    seed: int,
    *,
    components: int | None = None,
) -> Codebooks:
    """Codebooks for vectors, float32 [N, d]; a level gets fewer codes where fewer residuals are distinct.

    capacity: see `balance`. components: principal components that are quantised; None: by water-filling.
    """
    vectors = sample(vectors, sizes, seed)
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - mean
    variance, directions = np.linalg.eigh(centred.T @ centred / len(vectors))
    if components is None:
        components = filled(variance[::-1], float(np.log2(np.asarray(sizes, float)).sum()))
    scale = 2.0 ** np.round(
        np.log2(max(float(centred.std()), 1e-30))
    )  # vectors of any length; changes no digit
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
    """Codes of what an encoder makes of the vectors, level by level. books: where to start; None: by k-means."""
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
    """Centres, float32 [K, h]; K is `size`, or the number of distinct vectors where they are fewer."""
    distinct = len(np.unique(vectors.round(6), axis=0))
    kmeans = KMeans(min(size, distinct), n_init=STARTS, max_iter=50, random_state=seed).fit(vectors)
    centres: NDArray[np.float32] = kmeans.cluster_centers_.astype(np.float32)
    return centres


def filled(variance: NDArray[np.floating], bits: float) -> int:
    """Components that get some of so many bits. variance: of each, descending. At least 1."""
    for k in range(1, len(variance)):
        if variance[k] <= 0:
            return k
        level = 2 ** ((np.log2(variance[:k]).sum() - 2 * bits) / k)
        if level >= variance[k]:
            return k
    return len(variance)


def sample(vectors: NDArray[np.float32], sizes: Sequence[int], seed: int) -> NDArray[np.float32]:
    """As many of the vectors as are worth to fit such codebooks on, in their order."""
    most = ITEMS_PER_CODE * max(sizes)
    if len(vectors) <= most:
        return vectors
    rows = np.random.default_rng(seed).choice(len(vectors), most, replace=False)
    return vectors[np.sort(rows)]
