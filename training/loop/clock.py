"""The clock by which a training of some minutes ends."""

from __future__ import annotations

import torch

from training.settings import Clock


def minutes_of(clock: Clock, seconds: float, cpu_seconds: float) -> float:
    """Return the minutes that count.

    seconds, cpu_seconds: wall time, and processor time of all threads of the process.
    """
    return (cpu_seconds / torch.get_num_threads() if clock == "cpu" else seconds) / 60
