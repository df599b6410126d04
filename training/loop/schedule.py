"""Schedule of the learning rate: linear warm-up, then a cosine."""

from __future__ import annotations

import math


def rate_factor(progress: float, warmup: float, final_rate: float) -> float:
    """Return the share of the peak rate at `progress` ∈ [0, 1] of the run.

    f(p) = p / warmup                                             for p < warmup
    f(p) = final_rate + (1 − final_rate) · (1 + cos(π q)) / 2     with q = (p − warmup) / (1 − warmup)
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    q = (progress - warmup) / (1 - warmup)
    return final_rate + (1 - final_rate) * (1 + math.cos(math.pi * q)) / 2
