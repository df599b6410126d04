"""The gradients of a step: projected ones, plain ones, and figures of the tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gems.weights.part import Part
from gems.weights.projected import ProjectedWeight
from gems.weights.ranks import SHARED


@dataclass(frozen=True)
class StepFigures:
    """Numbers of one step, read from the device together.

    norms: ‖R_f‖ of each family over all projected weights.
    plain_norm: norm of the gradients of the plain parameters.
    objective: sum of all losses that were propagated.
    losses: summed losses by task, as the gate sees them.
    alignment: scalar product ⟨g V, N⟩ of this step's gradient of all tasks with each task's last update.
    moved: ‖N‖² of each task's last update over all weights.
    """

    norms: dict[str, float]
    plain_norm: float
    objective: float
    losses: dict[str, float]
    alignment: dict[str, float]
    moved: dict[str, float]

    def finite(self) -> bool:
        """Whether all losses and norms are finite."""
        numbers = [*self.norms.values(), self.plain_norm, self.objective, *self.losses.values()]
        return all(map(math.isfinite, numbers))

    def norm(self, family: str) -> float:
        """Return the norm that clipping bounds: plain parameters count with the shared family."""
        own = self.norms[family]
        return (own**2 + self.plain_norm**2) ** 0.5 if family == SHARED else own


class HeldGradients:
    """Sums, norms and clipping over all weights of an optimizer.

    plain: the parameters that are not projected.
    objective: sum of the losses that were propagated in this step, a scalar.
    losses, samples: sums over the passes of this step, by task, for the gate.
    seen: tasks that had a backward pass in this step.
    alignment: see `StepFigures`; scalars by learning task, fp64.
    """

    def __init__(
        self,
        weights: Sequence[ProjectedWeight],
        plain: Sequence[nn.Parameter],
        learning: Iterable[str],
        tasks: Sequence[str],
        group: dist.ProcessGroup | None,
    ) -> None:
        self.plain = list(plain)
        self._weights = weights
        self._learning = tuple(learning)
        self._tasks = tuple(tasks)
        self._group = group
        self._device = weights[0].subspaces.basis.device
        self.drop()

    def drop(self) -> None:
        """Set all sums to zero and free the gradients."""
        self.objective = torch.zeros((), dtype=torch.float64, device=self._device)
        self.losses: dict[str, Tensor] = {}
        self.samples = dict.fromkeys(self._tasks, 0.0)
        self.seen: set[str] = set()
        self.alignment = {
            task: torch.zeros((), dtype=torch.float64, device=self._device) for task in self._learning
        }
        for weight in self._weights:
            weight.subspaces.projected.zero_()
            weight.full = {}
            for part in weight.parts:
                part.reached = False
        for parameter in self.plain:
            parameter.grad = None

    def note(self, task: str, value: Tensor | float | None, samples: float) -> None:
        """Add a backward pass of a task. value: its loss, a scalar; it is read from its device in the step only."""
        self.seen.add(task)
        if value is not None:
            value = torch.as_tensor(value).detach().to(self.objective)
            self.losses[task] = self.losses[task] + value if task in self.losses else value
        if task in self.samples:
            self.samples[task] += samples

    def reduce(self, due: Sequence[ProjectedWeight]) -> None:
        """Sum figures and gradients over the processes.

        due: weights that refresh in this step; their full gradients are summed instead of the projected ones.
        """
        if self._group is None:
            return
        reached_plain = self._reduce_figures()
        refreshing = {weight.name for weight in due}
        present = [task for task in self._tasks if task in self.seen] or [SHARED]
        tensors: list[Tensor] = []
        for weight in self._weights:
            if weight.name in refreshing:
                for task in present if weight.reached else ():
                    if task not in weight.full:
                        weight.full[task] = weight.subspaces.projected.new_zeros(weight.shape)
                    weight.full[task] = weight.full[task].contiguous()
                    tensors.append(weight.full[task])
            else:
                tensors.append(weight.subspaces.projected)
        for parameter, reached in zip(self.plain, reached_plain, strict=True):
            if reached:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                tensors.append(parameter.grad)
        tensors += self.alignment.values()
        for tensor in tensors:
            dist.all_reduce(tensor, group=self._group)

    def _reduce_figures(self) -> list[bool]:
        """Sum losses and samples over the processes; what one process has seen or reached, all have.

        Returns whether each plain parameter has a gradient on any process.
        """
        names = self._tasks or (SHARED,)
        losses = [float(self.losses.get(name, 0.0)) for name in names]
        figures = torch.tensor(
            [
                *losses,
                *(self.samples.get(name, 0.0) for name in names),
                *(float(name in self.seen) for name in names),
                *(float(part.reached) for part in self._parts()),
                *(float(parameter.grad is not None) for parameter in self.plain),
                float(self.objective),
            ],
            dtype=torch.float64,
        ).to(self._device)  # NCCL cannot sum tensors on the CPU
        dist.all_reduce(figures, group=self._group)
        count, found = len(names), figures.tolist()
        for k, name in enumerate(names):
            if found[2 * count + k]:
                self.seen.add(name)
                self.losses[name] = figures[k]
                if name in self.samples:
                    self.samples[name] = found[count + k]
        self.objective = figures[-1]
        reached = [bool(each) for each in found[3 * count : -1]]
        parts = self._parts()
        for part, one in zip(parts, reached, strict=False):
            part.reached = one
            part.used = part.used or one
        return reached[len(parts) :]

    def _parts(self) -> list[Part]:
        return [part for weight in self._weights for part in weight.parts]

    def finite(self) -> bool:
        """Whether all losses and gradients are finite."""
        tensors = [p.grad for p in self.plain if p.grad is not None]
        tensors += [self.objective, *self.losses.values()]
        for weight in self._weights:
            tensors += [weight.subspaces.projected, *weight.full.values()]
        return bool(torch.isfinite(_total_norm(tensors)))

    def measure(self, families: Sequence[str]) -> StepFigures:
        """Return the figures of this step. This is the one place where the host waits for the device."""
        norms = [
            _total_norm([w.subspaces.projected[:, w.subspaces.columns[family]] for w in self._weights])
            for family in families
        ]
        plain = [p.grad for p in self.plain if p.grad is not None]
        zero = torch.zeros((), dtype=torch.float64, device=self._device)
        moved = {
            task: sum((w.moved[task].to(zero) for w in self._weights if task in w.moved), zero)
            for task in self._learning
        }
        scalars = [*norms, _total_norm(plain) if plain else zero]
        scalars += [self.objective, *self.losses.values(), *self.alignment.values(), *moved.values()]
        values = iter(torch.stack([each.to(zero) for each in scalars]).tolist())
        return StepFigures(
            {family: next(values) for family in families},
            next(values),
            next(values),
            {task: next(values) for task in self.losses},
            {task: next(values) for task in self.alignment},
            {task: next(values) for task in moved},
        )

    def clip(self, figures: StepFigures, largest: float) -> None:
        """Scale down the gradient of each family whose norm is above `largest`."""
        for family in figures.norms:
            norm = figures.norm(family)
            if norm <= largest:
                continue
            for weight in self._weights:
                weight.subspaces.projected[:, weight.subspaces.columns[family]] *= largest / norm
            if family == SHARED:
                for parameter in self.plain:
                    if parameter.grad is not None:
                        parameter.grad *= largest / norm


def _total_norm(tensors: Sequence[Tensor]) -> Tensor:
    norms = torch._foreach_norm(list(tensors))
    total: Tensor = torch.stack([norm.to(norms[0].device, torch.float64) for norm in norms]).norm()
    return total
