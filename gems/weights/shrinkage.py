"""The soft null space: updates are shortened in each input direction by as much as the model's knowledge depends on it.

    W ← W − η N Vᵀ S,    S = (I + K / μ)^(−1/2)

K = Σ x xᵀ over the inputs x of general text, μ > 0. With respect to X, where W = W₀ + X S, this is descent within the
subspace V of the gradient g S, so that R = g S V. The change of a layer's outputs on general text is bounded:

    Σ ‖N Vᵀ S x‖² = tr(N Vᵀ S K S V Nᵀ) ≤ μ ‖N‖²,    because S K S = K (I + K / μ)^(−1) ≼ μ I

A hard null space is the limit in which S is 0 for the leading directions and 1 for all others.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Shrinkage:
    """S = s_rest I + U diag(s − s_rest) Uᵀ with s_i = (1 + λ_i / μ)^(−1/2) for the leading eigenvectors U of K.

    directions: U, [n, k], orthonormal.
    eigenvalues: of K, descending, [n]. All directions outside U are shortened like the first of them, so that the bound
        holds for them, too.
    mu: μ, in units of the eigenvalues.
    """

    def __init__(self, directions: Tensor, eigenvalues: Tensor, mu: float) -> None:
        k = directions.shape[1]
        factors = (1 + eigenvalues.double() / mu).rsqrt()
        self._rest = float(factors[k]) if k < len(factors) else 1.0
        self._directions = directions
        self._factors = factors[:k].to(directions)

    def apply(self, rows: Tensor) -> Tensor:
        """Return x S for each row x of [a, n]."""
        return self._scaled(rows, self._rest, self._factors)

    def undo(self, rows: Tensor) -> Tensor:
        """Return x S⁻¹ for each row x of [a, n]."""
        return self._scaled(rows, 1 / self._rest, 1 / self._factors)

    def _scaled(self, rows: Tensor, rest: float, factors: Tensor) -> Tensor:
        inside = rows @ self._directions
        return rest * rows + torch.mul(inside, factors - rest) @ self._directions.T
