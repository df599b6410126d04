"""CAGrad by the `torchjd` library, on every trainable weight.

With g₀ the mean of the gradients, the step maximises the smallest decrease of a task's loss:

    max_d min_i ⟨g_i, d⟩   such that ‖d − g₀‖ ≤ c ‖g₀‖

Source: Liu et al., *Conflict-Averse Gradient Descent*, arXiv 2110.14048.
"""

from __future__ import annotations

from training.methods.jacobian_descent import GramianWeighting, check_library
from training.methods.method import Setup
from training.methods.task_gradients import TaskGradientTuning, task_gradient_tuning

C = 0.4  # as in the paper's experiments on NYU-v2

check = check_library


def make(setup: Setup) -> TaskGradientTuning:
    """Train every weight, unless the settings leave those outside of the linear layers frozen."""
    from torchjd.aggregation import CAGradWeighting  # an extra

    return task_gradient_tuning(setup, GramianWeighting(CAGradWeighting(c=C)))
