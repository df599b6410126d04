"""Numerics of small updates: adding them to low-precision weights, and how large a weight is."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-3


@torch.no_grad()
def add_(weight: Tensor, update: Tensor, generator: torch.Generator) -> None:
    """weight += update, rounded stochastically where the weight is bf16: right on average.

    A bf16 number is the upper half of an fp32 one. Adding a uniform 16-bit integer to the lower half and
    cutting it off rounds up with the probability of the remainder, so that E[rounded] = exact.
    weight: fp64, fp32 or bf16 of any shape; update: fp32 or fp64, same shape.
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
    """max(RMS(W), 1e-3), by which Adafactor multiplies its rate (arXiv 1804.04235, section 8).

    The bound lets weights that are zero begin.
    """
    mean_square = weight.detach().float().square().mean()
    return max(SMALLEST, float(mean_square.sqrt()))
