"""GaLore-style subspace tuning: GEMS with one shared subspace and one pass over the summed loss."""

from __future__ import annotations

from torch import nn

from training.config import TrainConfig
from training.methods.method import Setup
from training.methods.tuning.gems import GemsTuning, check_ranks, in_subspaces


def make(setup: Setup) -> GemsTuning:
    """Make the optimizer without subspaces for the tasks."""
    return in_subspaces(setup, multi_subspace=False)


def check(model: nn.Module, config: TrainConfig) -> None:
    """Raise `GemsError` if a layer has no room for its subspace."""
    check_ranks(model, config, multi_subspace=False)
