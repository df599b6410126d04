"""Numerics of small updates: their addition to low-precision weights, and the magnitude of a weight."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-3


@torch.no_grad()
def add_(weight: Tensor, update: Tensor, generator: torch.Generator) -> None:
    """Add an update to a weight in place, with stochastic rounding if the weight is bf16.

    A bf16 number is the upper half of an fp32 number. A uniform 16-bit integer is added to the lower half, and the
    lower half is cut off. This rounds up with a probability equal to the remainder, so that E[rounded] = exact.
    weight: fp64, fp32 or bf16 of any shape.
    update: fp32 or fp64, same shape.
    generator: randomness of the rounding, on the device of the weight.
    """
    if weight.dtype != torch.bfloat16:
        weight.add_(update)
        return
    exact = (weight.float() + update.float()).view(torch.int32)
    noise = torch.randint(
        0, 1 << 16, exact.shape, dtype=torch.int32, generator=generator, device=exact.device
    )
    weight.copy_(((exact + noise) & -0x10000).view(torch.float32))


def magnitude(weight: Tensor) -> float:
    """Return max(RMS(W), 1e-3), the factor of Adafactor's rate (arXiv 1804.04235, section 8).

    Without the bound, a weight that is zero would never change.
    """
    mean_square = weight.detach().float().square().mean()
    return max(SMALLEST, float(mean_square.sqrt()))
