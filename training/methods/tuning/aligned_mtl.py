"""Aligned-MTL by the `torchjd` library, on every trainable weight.

The principal components of the gradients get the same length, that of the smallest one: no task dominates, and the step
is well conditioned.

Source: Senushkin et al., *Independent Component Alignment*, arXiv 2305.19000.
"""

from __future__ import annotations

from training.methods.jacobian_descent import GramianWeighting, check_library
from training.methods.method import Setup
from training.methods.task_gradients import TaskGradientTuning, task_gradient_tuning

check = check_library


def make(setup: Setup) -> TaskGradientTuning:
    """Train every weight, unless the settings leave those outside of the linear layers frozen."""
    from torchjd.aggregation import AlignedMTLWeighting  # an extra

    return task_gradient_tuning(setup, GramianWeighting(AlignedMTLWeighting()))
