"""Weightings of the tasks' gradients by the `torchjd` library (the extra `torchjd`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from training.config import TrainConfig
from training.errors import UserError

LIBRARIES = ("torchjd", "cvxpy", "clarabel", "ecos", "quadprog", "qpsolvers")


class GramianWeighting:
    """The weights that a rule of the library gives to the gradients of the tasks that have one.

    rule: maps ⟨g_i, g_j⟩, float64 [n, n], to weights, float64 [n], and keeps nothing from step to step.
    sums: whether the rule's weights are those of a sum; else they are those of a mean, and are multiplied by n. Without
    any conflict the step is then as long as the one of method 'full'.
    """

    def __init__(self, rule: Callable[[Tensor], Tensor], *, sums: bool = False) -> None:
        self._rule, self._sums = rule, sums

    def __call__(self, gram: Tensor) -> Tensor:
        present = gram.diagonal().nonzero().flatten()
        weights = torch.ones(len(gram), dtype=torch.float64)
        if len(present) > 1:
            found = self._rule(gram[present][:, present]).double()
            weights[present] = found if self._sums else found * len(present)
        return weights

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: the rule keeps nothing."""


def check_library(model: nn.Module, config: TrainConfig) -> None:
    """Raise `UserError` if a library that these methods need is not installed."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"method {config.method!r} needs {', '.join(missing)}: pip install 'gems-sr[torchjd]', or use 'pcgrad'"
        )
