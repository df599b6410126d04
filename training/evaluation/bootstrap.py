"""Percentile bootstrap over cases: intervals of means and of paired differences."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000


def mean_interval(values: NDArray[np.float64], seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of `values`, float [cases]. Give per-case differences of two systems on the same
    cases for the paired interval of their difference."""
    (interval,) = mean_intervals(values[:, None], seed, level)
    return interval


def mean_intervals(
    values: NDArray[np.float64], seed: int = 0, level: float = 0.95
) -> list[tuple[float, float]]:
    """Interval of the mean of each column of `values`, float [cases, columns], from the same resamples.

    Resampling cases with replacement gives case i the count c_i, c ~ Multinomial(n, 1/n); the
    resampled mean is c · values / n.
    """
    n = len(values)
    if n == 0:
        raise ValueError("an interval needs at least one case")
    rng = np.random.default_rng(seed)
    means = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) @ values / n for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
