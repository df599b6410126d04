"""Comparison of the engine's own forward pass with the model's."""

from __future__ import annotations

import torch
from torch import Tensor

# As a share of the norm; larger than rounding, smaller than a missing bias.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


def same_logits(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two sets of logits are equal up to rounding: [rows, V] each, of different prompts.

    In bfloat16 one equal row is enough: deep models amplify its rounding on some prompts (to half of the norm, on
    SmolLM2) with any two orders of summation, whereas wrong mathematics is wrong on all prompts.
    """
    if ours.shape != theirs.shape:
        return False
    apart, size = (ours - theirs).float().norm(dim=1), theirs.float().norm(dim=1)
    close = apart <= TOLERANCE[theirs.dtype] * size + 1e-6  # logits may all be 0
    return bool(close.any() if theirs.dtype == torch.bfloat16 else close.all())
