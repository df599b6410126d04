"""RQ-VAE: an autoencoder whose latent vectors are residually quantised (TIGER, arXiv 2305.05065).

    z = encode(x),   q = Σ_j b_{j,c_j}   (codes of z, see `codebooks`),   x̂ = decode(z + sg[q − z])
    loss = ‖x − x̂‖² + β Σ_j ‖r_j − sg[b_{j,c_j}]‖²

The codes are moving averages of their residuals (van den Oord et al., arXiv 1711.00937, appendix A.1). They start from
residual k-means of a plain autoencoder's latent vectors. Unused codes restart at a random residual. At the end the
codes are balanced. The decoder is used only here: the encoder and the codes, as arrays, name the items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from index.identifiers.codebooks import Codebooks, Layer
from index.identifiers.kmeans import fit_levels, sample

STEPS, EPOCHS = 2000, 500  # the smaller of the two counts
PLAIN = 0.2  # share of the steps before codes are used
BATCH = 1024
HIDDEN, LATENT = 256, 32
RATE = 1e-3
COMMITMENT = 0.25  # β
DECAY = 0.99  # decay of the moving averages
REVIVE_EVERY, DEAD = 50, 0.05  # steps; a code with less than this share of the mean use counts as unused


def fit_rqvae(vectors: NDArray[np.float32], sizes: Sequence[int], capacity: float, seed: int) -> Codebooks:
    """Return codebooks for vectors. The same vectors and seed give the same codebooks.

    vectors: float32 [N, d].
    sizes: number of codes of each level. A level with fewer distinct residuals gets fewer codes.
    capacity: see `balance`.
    """
    vectors = sample(vectors, sizes, seed)
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = max(float((vectors - mean).std()), 1e-12)
    data = torch.from_numpy((vectors - mean) / scale)
    encoder, decoder = _perceptrons(data.shape[1], seed)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], RATE)
    random = torch.Generator().manual_seed(seed)
    books: list[_MovingBook] | None = None
    steps = min(STEPS, EPOCHS * -(-len(data) // BATCH))
    for step in range(steps):
        if step == int(PLAIN * steps):
            start = fit_levels(_layers(encoder, mean, scale), vectors, sizes, np.inf, seed)
            books = [_MovingBook(torch.from_numpy(book)) for book in start.levels]
        batch = data[torch.randint(len(data), (min(BATCH, len(data)),), generator=random)]
        latent = encoder(batch)
        coded, commitment = latent, torch.zeros(())
        if books is not None:
            quantised, commitment = _quantise(latent, books, random if step % REVIVE_EVERY == 0 else None)
            coded = latent + (quantised - latent).detach()
        loss = (decoder(coded) - batch).square().sum(1).mean() + COMMITMENT * commitment
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    learned = None if books is None else [book.codes.numpy() for book in books]
    return fit_levels(_layers(encoder, mean, scale), vectors, sizes, capacity, seed, learned)


def _perceptrons(dimensions: int, seed: int) -> tuple[nn.Sequential, nn.Sequential]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        latent = min(LATENT, dimensions)
        encoder = nn.Sequential(nn.Linear(dimensions, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, latent))
        decoder = nn.Sequential(nn.Linear(latent, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, dimensions))
    return encoder, decoder


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


def _quantise(
    latent: Tensor, books: Sequence[_MovingBook], revive: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return the sum of the codes, float [B, h], and the commitment loss."""
    residual, quantised, commitment = latent, torch.zeros_like(latent), torch.zeros(())
    for book in books:
        code = book.choose(residual.detach(), revive)
        commitment = commitment + (residual - code).square().sum(1).mean()
        quantised, residual = quantised + code, residual - code
    return quantised, commitment


def _layers(encoder: nn.Sequential, mean: NDArray[np.float32], scale: float) -> tuple[Layer, ...]:
    """Return the encoder as arrays, for vectors that are neither centred nor scaled."""
    first, second = (
        Layer(linear.weight.detach().T.numpy().copy(), linear.bias.detach().numpy().copy())
        for linear in encoder
        if isinstance(linear, nn.Linear)
    )
    weight = first.weight / np.float32(scale)
    return Layer(weight, first.bias - mean @ weight), second
