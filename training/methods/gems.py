"""GEMS and, as its special case with one shared subspace, GaLore-style subspace tuning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from gems import GEMS
from index.history import Task
from index.sequence import TASKS
from training.rows import AddedRows


class GemsTuning:
    """The blocks' linear layers in subspaces, `plain` parameters (the added token rows) by AdamW.

    With `multi_subspace` each task has a subspace of its own, gated, and a backward pass of its own;
    without, there is one shared subspace and one pass over the summed loss.
    """

    exportable = True

    def __init__(
        self,
        model: PreTrainedModel,
        plain: Iterable[nn.Parameter],
        *,
        rows: AddedRows | None,
        multi_subspace: bool,
        **settings: Any,
    ) -> None:
        self.rows = rows
        tasks = [task.value for task in TASKS] if multi_subspace else []
        self._multi_subspace = multi_subspace
        self._optimizer = GEMS(model, tasks, plain=plain, **settings)
        self._counted: set[Task] = set()

    def backward(self, losses: Mapping[Task, Tensor], shares: Mapping[Task, float]) -> None:
        weighted = {task.value: shares[task] * loss for task, loss in losses.items()}
        if not self._multi_subspace:
            self._optimizer.backward(sum(weighted.values(), start=next(iter(losses.values())).new_zeros(())))
            return
        fresh = set(losses) - self._counted  # shares are those of the whole step: they count once
        self._optimizer.backward(
            weighted,
            values={task.value: float(loss.detach()) for task, loss in losses.items()},
            samples={task.value: shares[task] for task in fresh},
        )
        self._counted |= fresh

    def step(self, learning_rate: float) -> dict[str, Any]:
        self._counted = set()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        figures: dict[str, Any] = dict(self._optimizer.figures())
        refreshed = self._optimizer.refreshed()
        return figures | ({"subspaces": refreshed} if refreshed else {})

    def merge(self) -> None:
        """Nothing to fold: the updates are in the weights."""

    def costs(self) -> dict[str, int]:
        return self._optimizer.costs()

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)
