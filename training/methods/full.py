"""Full tuning: AdamW on every weight, the tasks weighted by their share of the items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from index.history import Task
from training.config import TrainConfig


class FullTuning:
    """min Σ_task share_task · L_task with decoupled weight decay on matrices (not on norms and biases)."""

    def __init__(self, model: PreTrainedModel, config: TrainConfig) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._clip = config.clip
        groups = [
            {"params": [p for p in self._parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in self._parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)

    def backward(self, losses: Mapping[Task, Tensor], shares: Mapping[Task, float]) -> None:
        total = torch.stack([shares[task] * loss for task, loss in losses.items()]).sum()
        total.backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> dict[str, float]:
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        if not torch.isfinite(norm):
            raise ArithmeticError("the gradient is not finite")
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {"gradient_norm": float(norm)}

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)
