"""The time that a training takes, and the clock by which one of some minutes ends."""

from __future__ import annotations

import time

import torch

from training.settings import Clock


class Stopwatch:
    """Wall and processor time of a training, which go on from those of its earlier calls."""

    def __init__(self, seconds: float, cpu_seconds: float) -> None:
        """Start. seconds, cpu_seconds: those of earlier calls."""
        self._begin = time.perf_counter() - seconds
        self._cpu_begin = time.process_time() - cpu_seconds

    def read(self) -> tuple[float, float]:
        """Return the seconds of wall time, and of processor time of all threads of this process."""
        return time.perf_counter() - self._begin, time.process_time() - self._cpu_begin


def minutes_of(clock: Clock, seconds: float, cpu_seconds: float) -> float:
    """Return the minutes that count.

    seconds, cpu_seconds: see `Stopwatch.read`.
    """
    return (cpu_seconds / torch.get_num_threads() if clock == "cpu" else seconds) / 60
