"""Whether a forward of the engine's own computes what the model's forward does."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {
    torch.float32: 1e-3,
    torch.bfloat16: 5e-2,
}  # as a share of the norm; more than rounding, less than a bias


def same_logits(ours: Tensor, theirs: Tensor) -> bool:
    """Both [rows, V]."""
    return ours.shape == theirs.shape and bool(
        (ours - theirs).norm() <= TOLERANCE[theirs.dtype] * theirs.norm()
    )
