"""Percentile bootstrap over cases: intervals of means and of paired differences."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000


def mean_interval(values: NDArray[np.float64], seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of the mean of `values`, float [cases].

    For a paired interval of the difference of two systems, give the differences of their values case by case.
    """
    (interval,) = mean_intervals(values[:, None], seed, level)
    return interval


def mean_intervals(
    values: NDArray[np.float64], seed: int = 0, level: float = 0.95
) -> list[tuple[float, float]]:
    """Return the interval of the mean of each column of `values`, float [cases, columns], from the same resamples.

    Resampling cases with replacement gives case i the count c_i, with c ~ Multinomial(n, 1/n). The mean of the resample
    is c · values / n.

    level: coverage of the interval.
    Raises `ValueError` if there are no cases.
    """
    n = len(values)
    if n == 0:
        raise ValueError("an interval needs at least one case")
    rng = np.random.default_rng(seed)
    means = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) @ values / n for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
