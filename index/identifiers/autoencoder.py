"""An autoencoder whose latent vectors are residually quantised: what RQ-VAE, LETTER and GenSAR have in common.

    z = encode(x),   q = Σ_j b_{j,c_j}   (codes of z, see `codebooks`),   x̂ = decode(z + sg[q − z])
    loss = ‖x − x̂‖² + loss of the codes

x may hold several views of an item, such as its text and its behaviour. Each view has an encoder and a decoder of its
own, and z holds their latent vectors one after the other.

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

from index.identifiers.codebooks import Codebooks, Layer, side_by_side
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


Encoder = tuple[Layer, ...]


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

    def begin(encoder: Encoder, random: torch.Generator) -> LearnedCodes:
        first = fit_levels(encoder, vectors, sizes, np.inf, seed)
        return start([torch.from_numpy(book) for book in first.levels], fitted, random)

    encoder, learned = learn([vectors], seed, begin)
    return fit_levels(encoder, vectors, sizes, capacity, seed, learned)


def learn(
    views: Sequence[NDArray[np.float32]], seed: int, begin: Callable[[Encoder, torch.Generator], LearnedCodes]
) -> tuple[Encoder, list[NDArray[np.float32]] | None]:
    """Train the autoencoder and its codes.

    views: of the same N items, float32 [N, d_v] each.
    begin: makes the codes from the encoder so far, and a generator for what it draws.
    Returns the encoder of the views side by side, [N, Σ d_v], which are neither centred nor scaled; and the codes of
    each level, float32 [K_j, h], or None if there were too few steps.
    """
    means = [each.mean(axis=0, dtype=np.float64).astype(np.float32) for each in views]
    scales = [max(float((x - mean).std()), 1e-12) for x, mean in zip(views, means, strict=True)]
    data = [torch.from_numpy((x - m) / s) for x, m, s in zip(views, means, scales, strict=True)]
    perceptrons = [_perceptrons(x.shape[1], seed + view) for view, x in enumerate(data)]
    encoders, decoders = zip(*perceptrons, strict=True)
    widths = [latent_width(x.shape[1]) for x in data]
    weights = [p for pair in perceptrons for part in pair for p in part.parameters()]
    optimizer = torch.optim.AdamW(weights, RATE)
    random = torch.Generator().manual_seed(seed)
    codes: LearnedCodes | None = None
    count = len(data[0])
    steps = min(STEPS, EPOCHS * -(-count // BATCH))
    for step in range(steps):
        if step == int(PLAIN * steps):
            codes = begin(_layers(encoders, means, scales), random)
            if codes.parameters():
                optimizer.add_param_group({"params": list(codes.parameters())})
        rows = torch.randint(count, (min(BATCH, count),), generator=random)
        latent = torch.cat([encode(x[rows]) for encode, x in zip(encoders, data, strict=True)], dim=1)
        coded, loss = latent, torch.zeros(())
        if codes is not None:
            quantised, loss = codes.quantise(latent, rows)
            coded = straight_through(latent, quantised)
        for decode, part, x in zip(decoders, torch.split(coded, widths, dim=1), data, strict=True):
            loss = loss + (decode(part) - x[rows]).square().sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    learned = None if codes is None else [book.detach().numpy() for book in codes.books()]
    return _layers(encoders, means, scales), learned


def latent_width(dimensions: int) -> int:
    """Return the width of the latent vectors of a view."""
    return min(LATENT, dimensions)


def _perceptrons(dimensions: int, seed: int) -> tuple[nn.Sequential, nn.Sequential]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        latent = latent_width(dimensions)
        encoder = nn.Sequential(nn.Linear(dimensions, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, latent))
        decoder = nn.Sequential(nn.Linear(latent, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, dimensions))
    return encoder, decoder


def _layers(
    encoders: Sequence[nn.Sequential], means: Sequence[NDArray[np.float32]], scales: Sequence[float]
) -> Encoder:
    """Return the encoders as one, for vectors that are neither centred nor scaled."""
    each = []
    for encoder, mean, scale in zip(encoders, means, scales, strict=True):
        first, second = (
            Layer(linear.weight.detach().T.numpy().copy(), linear.bias.detach().numpy().copy())
            for linear in encoder
            if isinstance(linear, nn.Linear)
        )
        weight = first.weight / np.float32(scale)
        each.append((Layer(weight, first.bias - mean @ weight), second))
    return tuple(map(side_by_side, zip(*each, strict=True)))
