"""AdamW on a combination of the tasks' gradients: the step of every multi-task gradient method.

Let g_i = share_i ∇L_i over all weights together. A method chooses weights w from the inner products ⟨g_i, g_j⟩ alone,
and the step goes along Σ_i w_i g_i. So no gradient is copied, and what a method adds is a `Weighting`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from index.sequence.encoder import TASKS
from index.sequence.events import Task
from training.methods.adamw import AdamWTuning, Reduce, split_by_decay, trainable
from training.methods.method import Setup
from training.methods.pieces import plain_inner
from training.model.rows import AddedRows


class Weighting(Protocol):
    """A rule for the weights of the tasks' gradients."""

    def __call__(self, gram: Tensor) -> Tensor:
        """Return w, float64 [tasks].

        gram: ⟨g_i, g_j⟩, float64 [tasks, tasks], finite; zero in the row and column of a task without gradient.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs to go on in the same way."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        ...


class TaskGradientTuning(AdamWTuning):
    """AdamW on a combination of the tasks' gradients; holds one gradient for each task.

    weighting: rule for their weights.
    rows: the added token rows if they are weights of their own.
    """

    def __init__(
        self,
        model: nn.Module,
        weighting: Weighting,
        *,
        learning_rate: float,
        weight_decay: float,
        clip: float,
        rows: AddedRows | None = None,
        relative: bool = False,
        reduce: Reduce = lambda tensors: None,
    ) -> None:
        super().__init__(
            *split_by_decay(trainable(model, rows)),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clip=clip,
            relative=relative,
            reduce=reduce,
        )
        self.rows = rows
        self._weighting = weighting
        self._gradients: dict[Task, list[Tensor | None]] = {}

    def backward(self, losses: Mapping[Task, Tensor], shares: Mapping[Task, float]) -> None:
        for left, (task, loss) in zip(reversed(range(len(losses))), losses.items(), strict=True):
            held = self._gradients.get(task, [None] * len(self._parameters))
            for p, gradient in zip(self._parameters, held, strict=True):
                p.grad = gradient
            (shares[task] * loss).backward(retain_graph=left > 0)  # type: ignore[no-untyped-call]
            self._gradients[task] = [p.grad for p in self._parameters]
            self._drop_gradients()

    def step(self, learning_rate: float) -> dict[str, float]:
        nothing = [None] * len(self._parameters)
        gradients = [
            [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(self._parameters, self._gradients.get(task, nothing), strict=True)
            ]
            for task in TASKS
        ]
        self._gradients = {}
        self._reduce(self._pieces.whole([g for gradient in gradients for g in gradient]))
        gram = inner_products(gradients, self._pieces.inner)
        if not torch.isfinite(gram).all():
            raise ArithmeticError("the gradient is not finite")
        weights = self._weighting(gram)
        for k, p in enumerate(self._parameters):
            p.grad = combine([gradient[k] for gradient in gradients], weights)
        del gradients
        return {"gradient_norm": self._update(learning_rate)} | conflict(gram)

    def costs(self) -> dict[str, int]:
        costs = super().costs()
        return costs | {"gradient_bytes": len(TASKS) * costs["gradient_bytes"]}

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": super().state_dict(), "weighting": self._weighting.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state["optimizer"])
        self._weighting.load_state_dict(state["weighting"])


def inner_products(
    gradients: Sequence[Sequence[Tensor]],
    inner: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor] = plain_inner,
) -> Tensor:
    """Return ⟨g_i, g_j⟩ over all weights, float64 [tasks, tasks] on the CPU.

    gradients: of each task a list of tensors.
    inner: returns the inner product of two of them, see `Pieces.inner`.
    """
    tasks = len(gradients)
    rows = [[inner(gradients[i], gradients[j]) for j in range(i + 1)] for i in range(tasks)]
    square = [rows[max(i, j)][min(i, j)] for i in range(tasks) for j in range(tasks)]
    return torch.stack(square).view(tasks, tasks).cpu()


def conflict(gram: Tensor) -> dict[str, float]:
    """Return the cosine between the tasks' gradients if exactly two tasks have one, else nothing."""
    present = gram.diagonal().nonzero().flatten()
    if len(present) != 2:
        return {}
    (first, both), (_, second) = gram[present][:, present].tolist()
    return {"conflict.cosine": both / math.sqrt(first * second)}


def combine(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return Σ_i weights_i · tensors_i, computed in place of the first tensor."""
    total = tensors[0].mul_(float(weights[0]))
    for tensor, weight in zip(tensors[1:], weights[1:].tolist(), strict=True):
        total.add_(tensor, alpha=weight)
    return total


def task_gradient_tuning(setup: Setup, weighting: Weighting) -> TaskGradientTuning:
    """Train every weight, unless the settings leave those outside of the linear layers frozen."""
    return TaskGradientTuning(
        setup.model,
        weighting,
        rows=setup.other_weights("trained").rows,
        relative=setup.config.optimiser.relative,
        reduce=setup.parallel.sum,
        **setup.adamw,
    )
