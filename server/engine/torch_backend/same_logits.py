"""Whether a forward of the engine's own computes what the model's forward does."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {
    torch.float32: 1e-3,
    torch.bfloat16: 5e-2,
}  # as a share of the norm; more than rounding, less than a bias


def same_logits(ours: Tensor, theirs: Tensor) -> bool:
    """Both [rows, V], of different prompts.

    In bfloat16 one row is enough: deep models blow up its rounding on some prompts (to half of the norm, on SmolLM2),
    with any two orders of summation, whereas another mathematics is wrong on all.
    """
    if ours.shape != theirs.shape:
        return False
    apart, size = (ours - theirs).float().norm(dim=1), theirs.float().norm(dim=1)
    close = apart <= TOLERANCE[theirs.dtype] * size + 1e-6  # logits may all be 0
    return bool(close.any() if theirs.dtype == torch.bfloat16 else close.all())
