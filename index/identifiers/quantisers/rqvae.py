"""RQ-VAE: an autoencoder whose latent vectors are residually quantised (TIGER, arXiv 2305.05065).

    loss of the codes = β Σ_j ‖r_j − sg[b_{j,c_j}]‖²

The codes are moving averages of their residuals (van den Oord et al., arXiv 1711.00937, appendix A.1). Unused codes
restart at a random residual. The rest is in `autoencoder`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from index.identifiers.autoencoder import fit_autoencoder
from index.identifiers.codebooks import Codebooks

COMMITMENT = 0.25  # β
DECAY = 0.99  # decay of the moving averages
REVIVE_EVERY, DEAD = 50, 0.05  # steps; a code with less than this share of the mean use counts as unused


def fit(
    vectors: NDArray[np.float32],
    sizes: Sequence[int],
    capacity: float,
    seed: int,
    *,
    behaviour: NDArray[np.float32] | None = None,
) -> Codebooks:
    """Return codebooks for vectors; see `registry.Quantiser`."""
    return fit_autoencoder(
        vectors, sizes, capacity, seed, lambda books, rows, random: _MovingCodes(books, random)
    )


class _MovingCodes:
    """The codes of all levels, as moving averages."""

    def __init__(self, books: Sequence[Tensor], random: torch.Generator) -> None:
        self._levels = [_MovingBook(book) for book in books]
        self._random, self._steps = random, 0

    def quantise(self, latent: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        revive = self._random if self._steps % REVIVE_EVERY == 0 else None
        self._steps += 1
        residual, quantised, commitment = latent, torch.zeros_like(latent), torch.zeros(())
        for book in self._levels:
            code = book.choose(residual.detach(), revive)
            commitment = commitment + (residual - code).square().sum(1).mean()
            quantised, residual = quantised + code, residual - code
        return quantised, COMMITMENT * commitment

    def parameters(self) -> list[nn.Parameter]:
        return []

    def books(self) -> list[Tensor]:
        return [book.codes for book in self._levels]


class _MovingBook:
    """Codes of a level, float [K, h], as moving averages of the residuals that chose them."""

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes
        self._count = torch.ones(len(codes))
        self._total = codes.clone()

    @torch.no_grad()
    def choose(self, residual: Tensor, revive: torch.Generator | None) -> Tensor:
        """Return the nearest code of each residual, float [B, h], and move the codes towards their residuals.

        revive: randomness for moving unused codes to random residuals; None: they stay.
        """
        chosen = torch.cdist(residual, self.codes).argmin(1)
        count = torch.bincount(chosen, minlength=len(self.codes)).float()
        total = torch.zeros_like(self.codes).index_add_(0, chosen, residual)
        self._count.lerp_(count, 1 - DECAY)
        self._total.lerp_(total, 1 - DECAY)
        if revive is not None:
            dead = (self._count < DEAD * len(residual) / len(self.codes)).nonzero().flatten()
            self._total[dead] = residual[torch.randint(len(residual), (len(dead),), generator=revive)]
            self._count[dead] = 1.0
        quantised = self.codes[chosen]
        self.codes = self._total / self._count.clamp(min=1e-6).unsqueeze(1)
        return quantised
