"""The clock of the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def milliseconds(run: Callable[[], Any], repeats: int, warm_up: bool = True) -> float:
    """Median wall time of `run`."""
    if warm_up:
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def in_turn(one: Callable[[], Any], other: Callable[[], Any], *, repeats: int) -> tuple[float, float]:
    """Median wall times of two things that are run in turn, so that the machine's moods meet both."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for run, taken in zip((one, other), times, strict=True):
            start = time.perf_counter()
            run()
            if repeat:  # the first is the warm-up
                taken.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[0]), 1000 * statistics.median(times[1])
