"""Codebooks whose choice of a code can be differentiated (DIGER): Gumbel-softmax in place of the nearest code.

    l_{j,k} = −s_j (‖r_j − b_{j,k}‖² + p_{j,k})                  p: prices of popular codes, see `codebooks`
    y_j     = softmax_k((l_{j,k} + σ g_{j,k}) / τ)               g: standard Gumbel noise
    r_{j+1} = r_j − Σ_k y_{j,k} b_{j,k}

σ is the strength of the noise; without noise and softness, y_j is the hard choice of `Codebooks.quantise`. By the
Gumbel-max trick (Maddison et al., arXiv 1411.0030), the largest l + g is the nearest code with probability
softmax(l)_nearest. The sharpness s_j makes this `KEPT` on average over the items at the start, whatever the length of
their vectors.

Schedules: `use` keeps the choice hard unless the nearest code is popular, that is, used more than `POPULAR` times as
often as a code on average; σ falls linearly to zero. With `sigma`, all choices are soft and σ is learned, see
`uncertain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from index.identifiers.autoencoder import code_losses
from index.identifiers.codebooks import Codebooks, Layer

KEPT = 0.5
POPULAR = 1.5
DECAY = 0.99  # of the average use of a code
COMMITMENT = 0.25
LAMBDA = 1.7  # added to σ in the loss that learns it
SAMPLE = 2048  # items that the sharpness is measured on


@dataclass(frozen=True)
class SoftCodes:
    """Codes of U items.

    shares: y_j of each level, float [U, K_j].
    nearest: int64 [U, levels].
    sampled: whether a choice is soft, bool [U, levels].
    loss: distance between residuals and their nearest codes, see `code_losses`; a scalar.
    """

    shares: list[Tensor]
    nearest: Tensor
    sampled: Tensor
    loss: Tensor


class SoftCodebooks(nn.Module):
    """The encoder and the codes, as parameters; prices, sharpness and use, as buffers."""

    sharpness: Tensor

    def __init__(
        self, start: Codebooks, vectors: NDArray[np.float32], temperature: float, schedule: str
    ) -> None:
        """Start from codebooks.

        vectors: of the items, float32 [N, d].
        temperature: τ.
        schedule: `use` or `sigma`.
        """
        super().__init__()
        self.layers = nn.ModuleList(_linear(layer) for layer in start.encoder)
        self.levels = nn.ParameterList(torch.from_numpy(book.copy()) for book in start.levels)
        self.sigma = nn.Parameter(torch.ones(()))
        for level, price in enumerate(start.prices):
            self.register_buffer(f"price_{level}", torch.from_numpy(price.copy()))
            self.register_buffer(f"use_{level}", torch.zeros(len(price)))
        self._temperature, self._by_use = temperature, schedule == "use"
        self.register_buffer("sharpness", torch.ones(len(start.levels)))
        with torch.no_grad():
            every = torch.from_numpy(vectors)
            chosen = self(every, 0.0, hard=True).nearest
            for level, book in enumerate(self.levels):
                used = torch.bincount(chosen[:, level], minlength=len(book))
                self._use(level).copy_(used / len(chosen))
            for level, costs in enumerate(self._costs(every[:: max(1, len(every) // SAMPLE)])):
                self.sharpness[level] = sharpness_of(costs)

    def forward(self, vectors: Tensor, noise: float, *, hard: bool = False) -> SoftCodes:
        """Return the codes of items, with the gradients of encoder and codes.

        vectors: float [U, d].
        noise: σ.
        hard: whether all choices are.
        """
        residual, shares, chosen, soft = self.encode(vectors), [], [], []
        loss = residual.new_zeros(())
        for level, book in enumerate(self.levels):
            cost = self._cost(level, residual)
            nearest = cost.argmin(1)
            share = nn.functional.one_hot(nearest, len(book)).to(cost.dtype)
            popular = self._use(level)[nearest] * len(book) > POPULAR if self._by_use else nearest >= 0
            if hard:
                popular = torch.zeros_like(popular)
            else:
                gumbel = -torch.log(torch.empty_like(cost).exponential_())
                logits = noise * gumbel - self.sharpness[level] * cost
                share = torch.where(popular[:, None], (logits / self._temperature).softmax(1), share)
            code = book[nearest]
            loss = loss + self.sharpness[level] * code_losses(residual, code, COMMITMENT)
            residual = residual - share @ book
            shares.append(share)
            chosen.append(nearest)
            soft.append(popular)
        return SoftCodes(shares, torch.stack(chosen, 1), torch.stack(soft, 1), loss)

    def noise(self, share: float) -> float:
        """Return σ. share: how much of the stage is over."""
        return 1 - share if self._by_use else max(0.0, float(self.sigma.detach()))

    def uncertain(self, loss: Tensor) -> Tensor:
        """Return the loss that learns σ, L / (2 (σ + λ)²) + log(σ + λ); by the schedule `use`, L itself.

        At its least, σ = √L − λ: the noise falls with the loss.

        loss: L, nats a code, a scalar.
        """
        if self._by_use:
            return loss
        width = self.sigma.clamp(min=0) + LAMBDA
        return loss / (2 * width**2) + width.log()

    @torch.no_grad()
    def count(self, nearest: Sequence[Tensor]) -> None:
        """Move the average use of the codes towards that of a step. nearest: of its parts, int64 [U, levels] each."""
        chosen = torch.cat(list(nearest))
        for level, book in enumerate(self.levels):
            used = torch.bincount(chosen[:, level], minlength=len(book)) / len(chosen)
            self._use(level).lerp_(used, 1 - DECAY)

    def encode(self, vectors: Tensor) -> Tensor:
        """Return the encoded vectors: float [U, d] → [U, h]."""
        for depth, layer in enumerate(self.layers):
            vectors = layer(vectors.relu() if depth else vectors)
        return vectors

    @torch.no_grad()
    def codebooks(self) -> Codebooks:
        """Return the codebooks as arrays: the rule of hard choices."""
        encoder = tuple(
            Layer(_array(layer.weight.T), _array(layer.bias))
            for layer in self.layers
            if isinstance(layer, nn.Linear)
        )
        prices = tuple(_array(self._price(level)) for level in range(len(self.levels)))
        return Codebooks(encoder, tuple(map(_array, self.levels)), prices)

    def _costs(self, vectors: Tensor) -> list[Tensor]:
        """Return the costs of all codes, float [U, K_j] of each level, after hard choices before it."""
        residual, found = self.encode(vectors), []
        for level, book in enumerate(self.levels):
            found.append(self._cost(level, residual))
            residual = residual - book[found[-1].argmin(1)]
        return found

    def _cost(self, level: int, residual: Tensor) -> Tensor:
        book = self.levels[level]
        distance: Tensor = (
            residual.square().sum(1, keepdim=True) - 2 * residual @ book.T + book.square().sum(1)
        )
        return distance + self._price(level)

    def _price(self, level: int) -> Tensor:
        return self.get_buffer(f"price_{level}")

    def _use(self, level: int) -> Tensor:
        return self.get_buffer(f"use_{level}")


def sharpness_of(costs: Tensor) -> float:
    """Return s such that softmax(−s · costs) gives the nearest code a share of `KEPT` on average. costs: [U, K]."""
    if costs.shape[1] < 2:
        return 1.0
    gaps = costs - costs.min(1, keepdim=True).values
    scale = float(gaps.mean())
    if scale <= 0:
        return 1.0
    low, high = -10.0, 20.0  # of log2(s · mean gap); the share rises with s
    for _ in range(40):
        middle = (low + high) / 2
        kept = (-(2**middle / scale) * gaps).softmax(1).max(1).values.mean()
        low, high = (middle, high) if kept < KEPT else (low, middle)
    return 2**middle / scale


def _linear(layer: Layer) -> nn.Linear:
    linear = nn.Linear(*layer.weight.shape)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(layer.weight.T.copy()))
        linear.bias.copy_(torch.from_numpy(layer.bias))
    return linear


def _array(values: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.detach().cpu().numpy(), dtype=np.float32)
