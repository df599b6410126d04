"""AlphaFuse: item vectors that hold meaning and behaviour in separate directions.

Source: Hu et al., *AlphaFuse: Learn ID Embeddings for Sequential Recommendation in Null Space of Language
Embeddings*, arXiv 2504.19218. With language vectors x_1 .. x_N ∈ R^d of the items:

    μ = 1/N Σ_i x_i                     mean
    Σ = 1/N Σ_i (x_i − μ)(x_i − μ)ᵀ     covariance
    Σ = U S Uᵀ                          singular value decomposition, s_1 ≥ s_2 ≥ … ≥ s_d ≥ 0

The first d_s columns of U, U_s, span the semantic *row space*. The others span the *null space*, in which the texts
hold almost no information. The split is given by a threshold θ, d_s = #{k : s_k / s_1 > θ}, or by d_s itself. The row
space is standardised, so that all of its directions have the same weight, and frozen. In the null space, d_n directions
are kept and learned from behaviour:

    f_i = (x_i − μ)ᵀ U_s S_s^{−1/2}     ∈ R^{d_s}, covariance I
    e_i = (f_i, 0) + (0, z_i)           ∈ R^{d_s + d_n}, z_i learned
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

THRESHOLDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5)  # the range that the paper searches
ROUNDING = 1e-10  # below this share of the first direction's variance there are only rounding errors


class AlphaFuseError(ValueError):
    """The language vectors cannot be split as requested. The message names the reason and the remedy."""


@dataclass(frozen=True, eq=False)
class SemanticSpace:
    """Language vectors, split into row space and null space.

    mean:            float64 [d], μ
    directions:      float64 [d, d], U: its columns are orthonormal
    singular_values: float64 [d], of the covariance, descending: the variance along each direction
    semantic:        d_s, 0 < d_s < d
    """

    mean: NDArray[np.float64]
    directions: NDArray[np.float64]
    singular_values: NDArray[np.float64]
    semantic: int

    @classmethod
    def of(
        cls, vectors: NDArray[np.floating], *, threshold: float | None = None, semantic: int | None = None
    ) -> SemanticSpace:
        """Split vectors by relative singular value or at a fixed dimension.

        vectors: float [N, d], one language vector for each item, N > d.
        threshold: θ; semantic: d_s. Give one of the two.
        Raises `AlphaFuseError` for vectors that are not finite, too few or all the same, and for a split without a row
        space or without a null space.
        """
        if (threshold is None) == (semantic is None):
            raise AlphaFuseError("give either a threshold or the dimensions of the row space")
        mean, directions, values = _decompose(vectors)
        if threshold is not None:
            semantic = _dimensions_above(threshold, values)
        assert semantic is not None
        varied = int((values > ROUNDING * values[0]).sum())
        if semantic < 1:
            raise AlphaFuseError(f"a row space of {semantic} dimensions holds nothing; give 1 or more")
        if semantic >= len(values):
            raise AlphaFuseError(
                f"a row space of {semantic} of {len(values)} dimensions leaves no null space; give fewer"
            )
        if semantic > varied:
            raise AlphaFuseError(
                f"the language vectors vary in {varied} directions only, so a row space of {semantic} "
                f"cannot be standardised; give at most {varied}"
            )
        return cls(mean, directions, values, semantic)

    @property
    def dimensions(self) -> int:
        """d, the dimensions of the language vectors."""
        return len(self.mean)

    @property
    def row_space(self) -> NDArray[np.float64]:
        """U_s, float64 [d, d_s]."""
        return self.directions[:, : self.semantic]

    @property
    def null_space(self) -> NDArray[np.float64]:
        """The other columns of U, float64 [d, d − d_s]."""
        return self.directions[:, self.semantic :]

    def standardised(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return f = (x − μ)ᵀ U_s S_s^{−1/2} of each row: float32 [N, d_s].

        For the vectors that were given to `of`, the mean is 0 and the covariance I.
        """
        scale = np.sqrt(self.singular_values[: self.semantic])
        centred = np.asarray(vectors, np.float64) - self.mean
        return (centred @ self.row_space / scale).astype(np.float32)


class FusedVectors(nn.Module):
    """Fused vectors e = (f, 0) + (0, z) of every item. Only z has gradients.

    The two parts do not overlap, so the sum is a concatenation.
    """

    frozen: Tensor  # f, float32 [N, d_s]

    def __init__(self, space: SemanticSpace, vectors: NDArray[np.floating], null: int, std: float) -> None:
        """Standardise the vectors and draw the first z.

        vectors: float [N, d], the language vectors of the items, from the same encoder as those of `space`.
        null: d_n, at most the dimensions of the null space.
        std: standard deviation of the normal distribution of the first z (0: zeros).
        Raises `AlphaFuseError` if d_n is too large or the vectors do not fit the space.
        """
        super().__init__()
        available = space.dimensions - space.semantic
        if not 1 <= null <= available:
            raise AlphaFuseError(
                f"the null space has {available} dimensions, so {null} of them cannot be learned; "
                f"give 1 to {available}"
            )
        _check_finite(vectors)
        if vectors.shape[1] != space.dimensions:
            raise AlphaFuseError(
                f"vectors of {vectors.shape[1]} dimensions do not fit a space of {space.dimensions}"
            )
        self.register_buffer("frozen", torch.from_numpy(space.standardised(vectors)))
        self.learned = nn.Parameter(torch.randn(len(vectors), null) * std)

    def forward(self) -> Tensor:
        """Return e: float32 [N, d_s + d_n]."""
        return torch.cat([self.frozen, self.learned], dim=1)


def random_cosines(vectors: NDArray[np.floating], pairs: int, seed: int = 0) -> NDArray[np.float64]:
    """Return the cosines of random pairs of different items: float64 [pairs].

    They show how similar the vectors are, for example before and after they are standardised.
    vectors: float [N, d], N > 1.
    """
    rng = np.random.default_rng(seed)
    one = rng.integers(len(vectors), size=pairs)
    other = (one + rng.integers(1, len(vectors), pairs)) % len(vectors)
    unit = np.asarray(vectors, np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines: NDArray[np.float64] = np.einsum("pd,pd->p", unit[one], unit[other])
    return cosines


def _decompose(
    vectors: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return μ, U and the diagonal of S."""
    _check_finite(vectors)
    count, width = vectors.shape
    if count <= width:
        raise AlphaFuseError(
            f"{count} items are too few for language vectors of {width} dimensions: every direction that they "
            "do not span would pass for null space; more items are needed, or an encoder with fewer dimensions"
        )
    rows = np.asarray(vectors, np.float64)
    mean = rows.mean(0)
    centred = rows - mean
    values, directions = np.linalg.eigh(centred.T @ centred / count)  # symmetric: U S Uᵀ is its SVD
    values, directions = np.maximum(values[::-1], 0.0), directions[:, ::-1]
    if values[0] <= ROUNDING * max(float(mean @ mean), np.finfo(np.float64).tiny):
        raise AlphaFuseError("the language vectors have no variance: every item has the same one")
    return mean, np.ascontiguousarray(directions), values


def _dimensions_above(threshold: float, values: NDArray[np.float64]) -> int:
    count = int((values / values[0] > threshold).sum())
    if not count:
        raise AlphaFuseError(
            f"a threshold of {threshold} leaves no row space: no relative singular value is above 1; give less than 1"
        )
    if count == len(values):
        raise AlphaFuseError(
            f"a threshold of {threshold} leaves no null space: the smallest relative singular value is "
            f"{values[-1] / values[0]:.2g}; give that or more"
        )
    return count


def _check_finite(vectors: NDArray[np.floating]) -> None:
    if vectors.ndim != 2 or not vectors.size:
        raise AlphaFuseError(
            f"language vectors are a matrix, items × dimensions, not of shape {vectors.shape}"
        )
    wrong = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(wrong):
        raise AlphaFuseError(
            f"{len(wrong)} language vectors are not finite, the first in row {wrong[0]}; make them again"
        )
