"""A diffusion model of vectors that is guided by a state: noise becomes a vector, step by step.

A vector x_0 is mixed with noise ε ~ N(0, I), at a level t = 1 .. T:

    x_t = √ā_t x_0 + √(1 − ā_t) ε,    ā_t = Π_{s ≤ t} (1 − β_s),  β from 0.1 / T to 20 / T in even steps

The denoiser f(x_t, t, c) learns to give x_0 back, by squared error. Without a guide it reads a learned vector ∅ in
place of c, and an answer is made by leaving noise along a fixed path (DDIM, Song et al., arXiv 2010.02502), guided
without a classifier (Ho & Salimans, arXiv 2207.12598):

    x̂_0 = (1 + w) f(x_t, t, c) − w f(x_t, t, ∅)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Noise(nn.Module):
    """The levels of noise. Level 0 is none."""

    kept: Tensor  # ā, float32 [T + 1]

    def __init__(self, levels: int) -> None:
        """Make T = `levels` levels."""
        super().__init__()
        rates = torch.linspace(0.1 / levels, min(20 / levels, 0.999), levels, dtype=torch.float64)
        kept = torch.cat([torch.ones(1, dtype=torch.float64), (1 - rates).cumprod(0)])
        self.register_buffer("kept", kept.float(), persistent=False)

    @property
    def levels(self) -> int:
        """T."""
        return len(self.kept) - 1

    def added(self, vectors: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Return x_t. vectors, noise: float [n, D]. level: int64 [n]."""
        kept = self.kept[level, None]
        return kept.sqrt() * vectors + (1 - kept).sqrt() * noise


class Denoiser(nn.Module):
    """f(x_t, t, c) = √ā_t x_t + a perceptron over the noisy vector, the level and the guide.

    The first term is the best guess for vectors ~ N(0, I) about which nothing is known. The perceptron learns the rest.
    """

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.noise = Noise(levels)
        self.unguided = nn.Parameter(torch.randn(width) * 0.02)  # ∅
        self.level = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.layers = nn.Sequential(
            nn.Linear(3 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, 2 * width), nn.GELU(),
            nn.Linear(2 * width, width),
        )  # fmt: skip

    def forward(self, noisy: Tensor, level: Tensor, guide: Tensor) -> Tensor:
        """Return x̂_0, float32 [n, D]. noisy, guide: float [n, D]. level: int64 [n]."""
        when = self.level(waves(level / self.noise.levels, noisy.shape[1]))
        added: Tensor = self.layers(torch.cat([noisy, guide, when], 1))
        return self.noise.kept[level, None].sqrt() * noisy + added

    def loss(self, vectors: Tensor, guide: Tensor, unguided: float) -> Tensor:
        """Return the mean squared error of x̂_0 over random levels and noise, a scalar.

        vectors, guide: float [n, D].
        unguided: share of rows that read ∅ in place of their guide.
        """
        count = len(vectors)
        level = torch.randint(1, self.noise.levels + 1, (count,))
        noisy = self.noise.added(vectors, torch.randn_like(vectors), level)
        left_out = torch.rand(count, 1) < unguided
        found = self(noisy, level, torch.where(left_out, self.unguided, guide))
        loss: Tensor = (found - vectors).square().mean()
        return loss

    def generate(self, guide: Tensor, noise: Tensor, steps: int, guidance: float) -> Tensor:
        """Return vectors, float32 [n, D], made from `noise` alone: the same noise gives the same vectors.

        guide, noise: float [n, D].
        steps: number of levels that are visited, from T down.
        guidance: w.
        """
        path = torch.linspace(self.noise.levels, 0, min(steps, self.noise.levels) + 1).round().long()
        x, found = noise, noise
        nobody = self.unguided.expand_as(guide)
        for here, below in zip(path[:-1].tolist(), path[1:].tolist(), strict=True):
            level = torch.full((len(x),), here)
            found = (1 + guidance) * self(x, level, guide) - guidance * self(x, level, nobody)
            kept, next_kept = self.noise.kept[here], self.noise.kept[below]
            left = (x - kept.sqrt() * found) / (1 - kept).sqrt()
            x = next_kept.sqrt() * found + (1 - next_kept).sqrt() * left
        return found


def waves(place: Tensor, width: int) -> Tensor:
    """Return sines and cosines of places in [0, 1], float [n]: float32 [n, width]."""
    half = (width + 1) // 2
    rates = torch.exp(torch.linspace(0, math.log(1000), half))
    angles = place.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :width]
