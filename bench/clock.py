"""The clock of the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def milliseconds(run: Callable[[], Any], repeats: int, warm_up: bool = True) -> float:
    """Return the median wall time of `run` in milliseconds."""
    if warm_up:
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def in_turn(*runs: Callable[[], Any], repeats: int) -> list[float]:
    """Return the median wall time of each function in milliseconds.

    The functions run in turn, so that changes of the machine's speed affect all of them alike.
    """
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if repeat:  # the first is the warm-up
                taken.append(time.perf_counter() - start)
    return [1000 * statistics.median(taken) for taken in times]
