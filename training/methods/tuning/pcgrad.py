"""PCGrad, gradient surgery (arXiv 2001.06782, algorithm 1), on every trainable weight.

For every task i and every other task j in random order:

    g_i^PC ← g_i^PC − (⟨g_i^PC, g_j⟩ / ‖g_j‖²) g_j   where ⟨g_i^PC, g_j⟩ < 0,   from g_i^PC = g_i

The step goes along Σ_i g_i^PC. Every g_i^PC is a linear combination of the g_j; see `training.methods.task_gradients`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.methods.method import Setup
from training.methods.task_gradients import TaskGradientTuning, task_gradient_tuning


class Surgery:
    """The weights of PCGrad: the sum of the rows of `surgery`, in an order that is drawn anew each time."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, gram: Tensor) -> Tensor:
        return surgery(gram, self._generator).sum(dim=0)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])


def surgery(gram: Tensor, generator: torch.Generator) -> Tensor:
    """Return the coefficients of the projected gradients, float64 [tasks, tasks]: row i holds those of g_i^PC.

    gram: inner products of the gradients, float64 [tasks, tasks].
    """
    tasks = len(gram)
    coefficients = torch.eye(tasks, dtype=torch.float64)
    for i in range(tasks):
        for j in torch.randperm(tasks, generator=generator).tolist():
            inner = coefficients[i] @ gram[:, j]
            if j != i and inner < 0 < gram[j, j]:
                coefficients[i, j] -= inner / gram[j, j]
    return coefficients


def make(setup: Setup) -> TaskGradientTuning:
    """Train every weight, unless the settings leave those outside of the linear layers frozen."""
    return task_gradient_tuning(setup, Surgery(setup.config.seed))
