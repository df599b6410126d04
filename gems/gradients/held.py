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
from gems.weights.shards import is_spread, local


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
                part.summands = {}
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

        due: weights that refresh in this step; their full gradients are summed instead of the projected ones. Those of
            sharded weights are summed already, and so are gradients of sharded plain parameters: FSDP2 does it.
        """
        if self._group is None:
            return
        reached_plain = self._reduce_figures()
        refreshing = {weight.name for weight in due}
        present = [task for task in self._tasks if task in self.seen] or [SHARED]
        tensors: list[Tensor] = []
        for weight in self._weights:
            weight.scatter(self.alignment)
            if weight.name in refreshing:
                for task in present if weight.reached else ():
                    if task not in weight.full:
                        weight.full[task] = weight.subspaces.projected.new_zeros(weight.shape)
                    weight.full[task] = weight.full[task].contiguous()
                    tensors += [] if weight.shard.sharded else [weight.full[task]]
            else:
                tensors += [] if weight.shard.sharded else [weight.subspaces.projected]
        for parameter, reached in zip(self.plain, reached_plain, strict=True):
            if reached:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                tensors += [] if is_spread(parameter) else [parameter.grad]
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
        tensors = self._of_plain() + [(each, False) for each in (self.objective, *self.losses.values())]
        for weight in self._weights:
            held = [weight.subspaces.projected, *weight.full.values()]
            tensors += [(each, weight.shard.sharded) for each in held]
        return bool(torch.isfinite(self._norms([tensors])).all())

    def measure(self, families: Sequence[str]) -> StepFigures:
        """Return the figures of this step. This is the one place where the host waits for the device."""
        projected = [
            [(w.subspaces.projected[:, w.subspaces.columns[family]], w.shard.sharded) for w in self._weights]
            for family in families
        ]
        zero = torch.zeros((), dtype=torch.float64, device=self._device)
        moved = {
            task: sum((w.moved[task].to(zero) for w in self._weights if task in w.moved), zero)
            for task in self._learning
        }
        scalars = [*self._norms([*projected, self._of_plain()])]
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
                for gradient, _ in self._of_plain():
                    gradient *= largest / norm

    def count_moved(self) -> None:
        """Sum the lengths of the last updates over the rows of sharded weights, if the gate learns from them."""
        sharded = [(w.moved, task) for w in self._weights if w.shard.sharded for task in w.moved]
        if not self._learning or not sharded:
            return
        sums = torch.stack([moved[task].double() for moved, task in sharded])
        dist.all_reduce(sums, group=self._group)
        for (moved, task), total in zip(sharded, sums, strict=True):
            moved[task] = total

    def _of_plain(self) -> list[tuple[Tensor, bool]]:
        """Return the gradients of the plain parameters that are here, and whether there are more in other processes."""
        return [(local(p.grad), is_spread(p)) for p in self.plain if p.grad is not None]

    def _norms(self, lists: Sequence[Sequence[tuple[Tensor, bool]]]) -> Tensor:
        """Return the norm of each list of tensors, fp64. With each tensor: whether it is the part of a larger one."""
        whole = torch.stack(
            [_total_norm([t for t, part in each if not part], self._device) for each in lists]
        )
        if not any(part for each in lists for _, part in each):
            return whole
        parts = torch.stack([_total_norm([t for t, part in each if part], self._device) for each in lists])
        squares = parts.square()
        dist.all_reduce(squares, group=self._group)
        return (squares + whole.square()).sqrt()


def _total_norm(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    if not tensors:
        return torch.zeros((), dtype=torch.float64, device=device)
    norms = torch._foreach_norm(list(tensors))
    total: Tensor = torch.stack([norm.to(device, torch.float64) for norm in norms]).norm()
    return total
