"""How large a weight is: what a relative step is a share of."""

from __future__ import annotations

from torch import Tensor

SMALLEST = 1e-3


def magnitude(weight: Tensor) -> float:
    """max(RMS(W), 1e-3), by which Adafactor multiplies its rate (arXiv 1804.04235, section 8); the bound lets weights
    that are zero begin."""
    mean_square = weight.detach().float().square().mean()
    return max(SMALLEST, float(mean_square.sqrt()))
