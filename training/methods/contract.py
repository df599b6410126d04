"""What a tuning method does with the losses of the two tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from index.history import Task
from training.rows import AddedRows


class Method(Protocol):
    """Turns losses into updates. A step is any number of calls of `backward`, then one of `step`.

    exportable: whether `merge` leaves a plain checkpoint. rows: where the added token rows are weights
    of their own; the losses must then be computed with them.
    """

    exportable: bool
    rows: AddedRows | None

    def backward(self, losses: Mapping[Task, Tensor], shares: Mapping[Task, float]) -> None:
        """Accumulate gradients of one part of the step.

        losses: the part's contribution to the mean loss per item of each task (scalars; parts add up).
        shares: each task's share of the items of the whole step; adds up to 1.
        """
        ...

    def step(self, learning_rate: float) -> dict[str, Any]:
        """Update the weights, drop the gradients; returns figures for `metrics.jsonl`, maybe nested.

        Raises `ArithmeticError` for gradients that are not finite, and leaves the weights as they are.
        """
        ...

    def merge(self) -> None:
        """Fold what was trained into plain weights, once, after training."""
        ...

    def costs(self) -> dict[str, int]:
        """`state_bytes` of the optimizer, and `gradient_bytes` held between `backward` and `step`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs beside the weights: tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
