"""An autoencoder whose latent vectors are residually quantised: what RQ-VAE and LETTER have in common.

    z = encode(x),   q = Σ_j b_{j,c_j}   (codes of z, see `codebooks`),   x̂ = decode(z + sg[q − z])
    loss = ‖x − x̂‖² + loss of the codes

The codes start from residual k-means of a plain autoencoder's latent vectors, and are balanced at the end. The decoder
is used only here: the encoder and the codes, as arrays, name the items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from index.identifiers.codebooks import Codebooks, Layer
from index.identifiers.levels import fit_levels, sampled_rows

STEPS, EPOCHS = 2000, 500  # the smaller of the two counts
PLAIN = 0.2  # share of the steps before codes are used
BATCH = 1024
HIDDEN, LATENT = 256, 32
RATE = 1e-3


class LearnedCodes(Protocol):
    """The codes of all levels while they are learned."""

    def quantise(self, latent: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum q of each vector's codes, float [B, h], and the loss of the codes, a scalar.

        latent: float [B, h], with gradients.
        rows: rows of the vectors among those that are fitted, int64 [B].
        """
        ...

    def parameters(self) -> Sequence[nn.Parameter]:
        """Return what AdamW learns besides the autoencoder."""
        ...

    def books(self) -> list[Tensor]:
        """Return the codes of each level, float [K_j, h]."""
        ...


def code_losses(residual: Tensor, code: Tensor, commitment: float) -> Tensor:
    """Return the mean over vectors of ‖sg[r] − b‖² + β ‖r − sg[b]‖², where b is the code that stands for r.

    The first part moves codes towards their residuals, the second one residuals towards their codes.

    residual, code: float [B, h].
    commitment: β.
    """
    codes = (residual.detach() - code).square().sum(1).mean()
    return codes + commitment * (residual - code.detach()).square().sum(1).mean()


def straight_through(latent: Tensor, quantised: Tensor) -> Tensor:
    """Return the quantised vectors, with the gradient of the latent ones: z + sg[q − z]. Both: float [B, h]."""
    return latent + (quantised - latent).detach()


Start = Callable[[list[Tensor], NDArray[np.int64], torch.Generator], LearnedCodes]


def fit_autoencoder(
    vectors: NDArray[np.float32], sizes: Sequence[int], capacity: float, seed: int, start: Start
) -> Codebooks:
    """Return codebooks for vectors. The same vectors and seed give the same codebooks.

    vectors, sizes, capacity: as in `registry.Quantiser`.
    start: makes the codes from the first codes of each level, float [K_j, h], the rows of `vectors` that are fitted,
    and a generator for what it draws.
    """
    fitted = sampled_rows(len(vectors), sizes, seed)
    vectors = vectors[fitted]
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = max(float((vectors - mean).std()), 1e-12)
    data = torch.from_numpy((vectors - mean) / scale)
    encoder, decoder = _perceptrons(data.shape[1], seed)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], RATE)
    random = torch.Generator().manual_seed(seed)
    codes: LearnedCodes | None = None
    steps = min(STEPS, EPOCHS * -(-len(data) // BATCH))
    for step in range(steps):
        if step == int(PLAIN * steps):
            first = fit_levels(_layers(encoder, mean, scale), vectors, sizes, np.inf, seed)
            codes = start([torch.from_numpy(book) for book in first.levels], fitted, random)
            if codes.parameters():
                optimizer.add_param_group({"params": list(codes.parameters())})
        rows = torch.randint(len(data), (min(BATCH, len(data)),), generator=random)
        latent = encoder(data[rows])
        coded, loss = latent, torch.zeros(())
        if codes is not None:
            quantised, loss = codes.quantise(latent, rows)
            coded = straight_through(latent, quantised)
        loss = loss + (decoder(coded) - data[rows]).square().sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    learned = None if codes is None else [book.detach().numpy() for book in codes.books()]
    return fit_levels(_layers(encoder, mean, scale), vectors, sizes, capacity, seed, learned)


def _perceptrons(dimensions: int, seed: int) -> tuple[nn.Sequential, nn.Sequential]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        latent = min(LATENT, dimensions)
        encoder = nn.Sequential(nn.Linear(dimensions, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, latent))
        decoder = nn.Sequential(nn.Linear(latent, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, dimensions))
    return encoder, decoder


def _layers(encoder: nn.Sequential, mean: NDArray[np.float32], scale: float) -> tuple[Layer, ...]:
    """Return the encoder as arrays, for vectors that are neither centred nor scaled."""
    first, second = (
        Layer(linear.weight.detach().T.numpy().copy(), linear.bias.detach().numpy().copy())
        for linear in encoder
        if isinstance(linear, nn.Linear)
    )
    weight = first.weight / np.float32(scale)
    return Layer(weight, first.bias - mean @ weight), second
