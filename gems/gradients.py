"""The gradients of a step: projected ones, plain ones, and figures of the tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gems.layers import SHARED
from gems.weight import ProjectedWeight


class HeldGradients:
    """Sums, norms and clipping over all weights of an optimizer.

    stats: fp64 [3, tasks]: loss, samples and number of backward passes of each task.
    alignment: scalar product ⟨g V, N⟩ of this step's gradient of all tasks with the last update of each learning task,
    summed over weights.
    """

    def __init__(
        self,
        weights: Sequence[ProjectedWeight],
        plain: Sequence[nn.Parameter],
        learning: Iterable[str],
        tasks: int,
        group: dist.ProcessGroup | None,
    ) -> None:
        self.plain = list(plain)
        self._weights = weights
        self._learning = tuple(learning)
        self._tasks = tasks
        self._group = group
        self.drop()

    def drop(self) -> None:
        """Set all sums to zero and free the gradients."""
        device = self._weights[0].parameter.device
        self.stats = torch.zeros(3, self._tasks, dtype=torch.float64)
        self.alignment = {
            task: torch.zeros((), dtype=torch.float64, device=device) for task in self._learning
        }
        for weight in self._weights:
            weight.subspaces.projected.zero_()
            weight.full = {}
        for parameter in self.plain:
            parameter.grad = None

    def present(self, tasks: Sequence[str]) -> list[str]:
        """Return the tasks that had a backward pass in this step."""
        return [task for k, task in enumerate(tasks) if self.stats[2, k] > 0]

    def reduce_stats(self) -> None:
        """Sum the figures of the tasks over the processes."""
        if self._group is not None and self._tasks:
            stats = self.stats.to(self._weights[0].parameter.device)  # NCCL cannot sum tensors on the CPU
            dist.all_reduce(stats, group=self._group)
            self.stats = stats.cpu()

    def reduce(self, due: Sequence[ProjectedWeight], tasks: Sequence[str]) -> None:
        """Sum the gradients over the processes.

        due: weights that refresh in this step; their full gradients are summed instead of the projected ones.
        tasks: the tasks of this step.
        """
        if self._group is None:
            return
        refreshing = {weight.name for weight in due}
        tensors: list[Tensor] = []
        for weight in self._weights:
            if weight.name in refreshing:
                for task in tasks:
                    if task not in weight.full:
                        weight.full[task] = weight.subspaces.projected.new_zeros(weight.parameter.shape)
                    tensors.append(weight.full[task])
            else:
                tensors.append(weight.subspaces.projected)
        for parameter in self.plain:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            tensors.append(parameter.grad)
        tensors += self.alignment.values()
        for tensor in tensors:
            dist.all_reduce(tensor, group=self._group)

    def finite(self) -> bool:
        """Whether all gradients are finite."""
        tensors = [p.grad for p in self.plain if p.grad is not None]
        for weight in self._weights:
            tensors += [weight.subspaces.projected, *weight.full.values()]
        return bool(torch.isfinite(_total_norm(tensors)))

    def norm(self, family: str) -> float:
        """Return ‖R_family‖ over all weights; the gradients of plain parameters count with the shared family."""
        tensors = [w.subspaces.projected[:, w.subspaces.columns[family]] for w in self._weights]
        if family == SHARED:
            tensors += [p.grad for p in self.plain if p.grad is not None]
        return float(_total_norm(tensors))

    def clip(self, norms: Mapping[str, float], largest: float) -> None:
        """Scale down the gradient of each family whose norm is above `largest`. norms: by family."""
        for family, norm in norms.items():
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
