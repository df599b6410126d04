"""What a tuning method is made from, and what it does with the losses of the two tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from gems import KnowledgeBasis
from index.sequence.events import Task
from training.config import TrainConfig
from training.model.rows import AddedRows
from training.run.parallel import Parallel


@dataclass(frozen=True)
class Setup:
    """What a method is made from: a module of `training.methods.tuning` has a function `make(setup) -> Method`.

    model: the extended backbone, all of its weights trainable. first_added: token id from which its rows are new.
    knowledge: basis of directions to leave alone, if there is one. parallel: processes that train together.
    """

    model: PreTrainedModel
    config: TrainConfig
    first_added: int
    knowledge: KnowledgeBasis | None = None
    parallel: Parallel = field(default_factory=Parallel)

    @property
    def adamw(self) -> dict[str, float]:
        """Settings that every AdamW takes."""
        config = self.config
        return {
            "learning_rate": config.learning_rate,
            "weight_decay": config.weight_decay,
            "clip": config.clip,
        }

    def freeze_backbone(self) -> AddedRows:
        """Freeze all weights but the rows of added tokens, and return these."""
        self.model.requires_grad_(False)
        return AddedRows(self.model, self.first_added)


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
