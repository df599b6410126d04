"""Nash-MTL (Navon et al., *Multi-Task Learning as a Bargaining Game*, arXiv 2202.01017) by the `torchjd` library.

The step is the Nash bargaining solution of the tasks: α with (Gᵀ G) α = 1 / α, where the columns of G are their
gradients. Every step starts the search for α afresh, so that a resumed training goes on in the same way.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from training.methods.jacobian_descent import GramianWeighting, check_library
from training.methods.method import Setup
from training.methods.task_gradients import TaskGradientTuning, task_gradient_tuning

MOST_NORM = 1.0  # of the step before AdamW, as in the authors' code

check = check_library


def bargain(gram: Tensor) -> Tensor:
    """Return α, float64 [n]. gram: float64 [n, n]."""
    from torchjd.aggregation import NashMTL  # an extra

    rule = NashMTL(n_tasks=len(gram), max_norm=MOST_NORM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cvxpy's advice on problems that are solved many times
        weights: Tensor = rule.weighting(root(gram))
    return weights


def root(gram: Tensor) -> Tensor:
    """Return a matrix whose rows have these inner products, float64 [n, n]."""
    values, vectors = torch.linalg.eigh(gram)
    rows: Tensor = vectors * values.clamp(min=0).sqrt()
    return rows


def make(setup: Setup) -> TaskGradientTuning:
    """Train every weight, unless the settings leave those outside of the linear layers frozen."""
    return task_gradient_tuning(setup, GramianWeighting(bargain, sums=True))
