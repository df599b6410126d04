"""Numerics of small updates: float32 values of bf16 weights, and the magnitude of a weight."""

from __future__ import annotations

import torch
from torch import Tensor

from gems.weights.shards import AllRows

SMALLEST = 1e-3


class Remainder:
    """The difference between a bf16 weight and its float32 value, in 16 bits a number.

    A bf16 number is the upper half of a float32 number. The weight holds the nearest bf16 number, and the remainder is
    the difference of the two as integers, so that both together are the float32 value (Split-SGD, arXiv 2005.04680).
    Updates far below a step of bf16 add up, and no rounding noise ever enters the float32 value.
    """

    def __init__(self, weight: Tensor) -> None:
        self.low = torch.zeros(weight.shape, dtype=torch.int16, device=weight.device)

    def exact(self, weight: Tensor) -> Tensor:
        """Return the float32 value of a bf16 weight, as a new tensor."""
        low = torch.where(
            weight == 0, self.low.clamp(min=0), self.low
        )  # below zero's bits there is no number
        return (weight.float().view(torch.int32) + low.int()).view(torch.float32)

    def store(self, weight: Tensor, exact: Tensor) -> None:
        """Write a float32 value: its nearest bf16 number into the weight, and the rest here."""
        bits = exact.view(torch.int32)
        high = (bits + 0x8000) & -0x10000
        weight.copy_(high.view(torch.float32))
        self.low.copy_(bits - high)


def magnitude(weight: Tensor, shard: AllRows | None = None) -> Tensor:
    """Return max(RMS(W), 1e-3), a scalar: the factor of Adafactor's rate (arXiv 1804.04235, section 8).

    Without the bound, a weight that is zero would never change.
    shard: the rows of W that are here, if not all are.
    """
    squares = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).square()
    if shard is None or not shard.sharded:
        return squares.mean().sqrt().clamp(min=SMALLEST)
    count = squares.new_tensor(squares.numel(), dtype=torch.float64)
    total, count = shard.sum(torch.stack([squares.double().sum(), count]))
    found: Tensor = (total / count).to(squares).sqrt().clamp(min=SMALLEST)
    return found
