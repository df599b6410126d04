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

from index.identifiers.codebooks import Codebooks, Layer
from index.identifiers.levels import fit_levels, sample


def fit(
    vectors: NDArray[np.float32],
    sizes: Sequence[int],
    capacity: float,
    seed: int,
    *,
    behaviour: NDArray[np.float32] | None = None,
    components: int | None = None,
) -> Codebooks:
    """Return codebooks of residual k-means; see `registry.Quantiser`.

    components: number of principal components that are quantised; None: by water-filling.
    """
    vectors = sample(vectors, sizes, seed)
    encoder = principal(vectors, sizes, components)
    return fit_levels(encoder, vectors, sizes, capacity, seed)


def principal(
    vectors: NDArray[np.float32], sizes: Sequence[int], components: int | None = None
) -> tuple[Layer, ...]:
    """Return the map of vectors to their leading principal components, in descending order of variance.

    components: number of them; None: by water-filling.
    """
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - mean
    variance, directions = np.linalg.eigh(centred.T @ centred / len(vectors))
    if components is None:
        components = filled(variance[::-1], float(np.log2(np.asarray(sizes, float)).sum()))
    # a power of two: brings vectors of any length into range without rounding errors
    scale = 2.0 ** np.round(np.log2(max(float(centred.std()), 1e-30)))
    weight = (directions[:, ::-1][:, :components] / scale).astype(np.float32)
    return (Layer(weight, (-mean @ weight).astype(np.float32)),)


def filled(variance: NDArray[np.floating], bits: float) -> int:
    """Return the number of components that get some of `bits` bits, at least 1. variance: of each, descending."""
    for k in range(1, len(variance)):
        if variance[k] <= 0:
            return k
        level = 2 ** ((np.log2(variance[:k]).sum() - 2 * bits) / k)
        if level >= variance[k]:
            return k
    return len(variance)
