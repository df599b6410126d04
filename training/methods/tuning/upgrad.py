"""UPGrad by the `torchjd` library, on every trainable weight.

Each task's gradient is projected onto the cone of directions that no task's loss rises along; the step goes along their
sum.

Source: Quinton & Rey, *Jacobian Descent for Multi-Objective Optimization*, arXiv 2406.16232.
"""

from __future__ import annotations

from training.methods.jacobian_descent import GramianWeighting, check_library
from training.methods.method import Setup
from training.methods.task_gradients import TaskGradientTuning, task_gradient_tuning

check = check_library


def make(setup: Setup) -> TaskGradientTuning:
    """Train every weight, unless the settings leave those outside of the linear layers frozen."""
    from torchjd.aggregation import UPGradWeighting  # an extra

    return task_gradient_tuning(setup, GramianWeighting(UPGradWeighting()))
