"""AdamW on a weighted sum of the tasks' losses, with clipping; several methods share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from index.sequence.events import Task
from training.errors import UserError
from training.methods.pieces import Pieces
from training.model.rows import AddedRows

# sums gradients in place over the data-parallel processes; every process passes the same shapes
Reduce = Callable[[list[Tensor]], None]


def trainable(model: nn.Module, rows: AddedRows | None) -> list[nn.Parameter]:
    """Return the weights of a model that are not frozen, and the added token rows if they are weights of their own."""
    return [p for p in model.parameters() if p.requires_grad] + ([] if rows is None else rows.parameters)


def split_by_decay(
    parameters: Iterable[nn.Parameter],
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the matrices, which decay, and the norms and biases, which do not."""
    known = list(parameters)
    return [p for p in known if p.ndim >= 2], [p for p in known if p.ndim < 2]


def total_loss(losses: Mapping[Task, Tensor], shares: Mapping[Task, float]) -> Tensor:
    """Return Σ_task share_task · L_task, a scalar."""
    return torch.stack([shares[task] * loss for task, loss in losses.items()]).sum()


class AdamWTuning:
    """AdamW with decoupled weight decay on min Σ_task share_task · L_task over the given weights.

    decayed, undecayed: weights with and without weight decay.
    clip: largest norm of the gradient of all weights together.
    relative: whether the rate of each weight is multiplied by its magnitude.
    reduce: sums gradients over the processes.
    frozen: linear layers whose weights are not trained.

    A weight without gradient counts as one with a zero gradient, so that all processes do the same.
    """

    exportable = True
    rows: AddedRows | None = None
    frozen: Sequence[nn.Linear] = ()

    def __init__(
        self,
        decayed: Iterable[nn.Parameter],
        undecayed: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float,
        clip: float,
        relative: bool = False,
        reduce: Reduce = lambda tensors: None,
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(decayed), "weight_decay": weight_decay},
            {"params": list(undecayed), "weight_decay": 0.0},
        ]
        if relative:  # each weight has its own rate
            groups = [group | {"params": [p]} for group in groups for p in group["params"]]
        self._parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        self._pieces = Pieces(self._parameters)
        own = iter(self._pieces.own)
        groups = [group | {"params": [next(own) for _ in group["params"]]} for group in groups]
        self._optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)
        self._clip = clip
        self._relative = relative
        self._reduce = reduce

    @property
    def adamw(self) -> torch.optim.AdamW:
        return self._optimizer

    def backward(self, losses: Mapping[Task, Tensor], shares: Mapping[Task, float]) -> None:
        total_loss(losses, shares).backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> dict[str, float]:
        for p in self._parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        self._reduce(self._pieces.whole([p.grad for p in self._parameters if p.grad is not None]))
        return {"gradient_norm": self._update(learning_rate)}

    def narrow(self) -> None:
        """Hold the frozen layers in bfloat16. Raises `UserError` if there are none.

        A step of AdamW is mostly smaller than half a step of bfloat16, and would be lost in trained ones.
        """
        if not self.frozen:
            raise UserError("AdamW needs float32 weights: choose backbone.precision 'autocast'")
        for linear in self.frozen:
            linear.weight.data = linear.weight.data.to(torch.bfloat16)

    def widen(self) -> None:
        for linear in self.frozen:
            linear.weight.data = linear.weight.data.float()

    def exact_weights(self) -> dict[str, Tensor]:
        return {}

    def merge(self) -> None:
        """Do nothing: the trained weights belong to the model."""

    def costs(self) -> dict[str, int]:
        state = self._optimizer.state.values()
        return {
            "state_bytes": sum(t.nbytes for entry in state for t in entry.values() if isinstance(t, Tensor)),
            "gradient_bytes": sum(p.nbytes for p in self._pieces.own),
        }

    def state_dict(self) -> dict[str, Any]:
        return self._pieces.spread(self._optimizer.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(self._pieces.here(state))

    def _update(self, learning_rate: float) -> float:
        """Clip the gradients, apply and drop them. Return their norm before clipping."""
        self._pieces.take_gradients()
        norm = self._pieces.clip(self._clip)
        finite = norm < float("inf")  # False for NaN, too
        if finite:
            lengths = self._pieces.lengths() if self._relative else [1.0] * len(self._optimizer.param_groups)
            for group, length in zip(self._optimizer.param_groups, lengths, strict=True):
                group["lr"] = learning_rate * length
            self._optimizer.step()
        self._drop_gradients()
        if not finite:
            raise ArithmeticError("the gradient is not finite")
        return norm

    def _drop_gradients(self) -> None:
        for p in (*self._parameters, *self._pieces.own):
            p.grad = None
