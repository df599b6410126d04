"""The rows of a weight that this process holds: all of them, or those that FSDP2 (`fully_shard`) has left to it.

R = g V, Adam's moments and the update N Vᵀ are made row by row, so that a process needs nothing of the rows of others.
What goes over all rows, such as norms and gᵀ (g Ω) of a refresh, is summed over the processes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from gems.model.errors import GemsError


def local(tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor that are on this process; they share its storage."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_spread(tensor: Tensor) -> bool:
    """Whether a tensor is spread over processes."""
    return isinstance(tensor, DTensor)


class AllRows:
    """All rows of a weight are here. Nothing is summed.

    group: the processes that hold the rows of a sharded weight.
    dim: the dimension of the parameter that holds the rows.
    """

    group: dist.ProcessGroup | None = None
    dim = 0

    @property
    def sharded(self) -> bool:
        """Whether other processes hold other rows."""
        return self.group is not None

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over the processes that hold rows, in place."""
        return tensor

    def any(self, tensor: Tensor) -> bool:
        """Whether any number of any row is not zero. tensor: own rows."""
        return bool(tensor.any())

    def norm(self, tensor: Tensor) -> Tensor:
        """Return the Frobenius norm over all rows, a scalar. tensor: own rows."""
        found: Tensor = tensor.norm()
        return found

    def triangle(self, tensor: Tensor) -> Tensor:
        """Return R [·, k] of the QR decomposition of all rows. tensor: own rows, [·, k]."""
        found: Tensor = torch.linalg.qr(tensor, mode="r").R
        return found

    def scatter(self, tensor: Tensor) -> Tensor:
        """Return own rows of the sum over the processes. tensor: this process's summand of all rows, [a, q]."""
        return tensor

    def whole(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Return a tensor as a part of all rows, which are in dimension `dim`, for a checkpoint. tensor: own rows."""
        return tensor

    def own(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Return own rows of a tensor of `whole`, or of one that holds all rows. Undoes `whole`."""
        return local(tensor)


class SomeRows(AllRows):
    """Rows of a weight that is sharded over processes, in blocks like those of `torch.chunk`.

    parameter: the weight.
    rows: the dimension of the parameter that must hold the rows: the one that is sharded.
    name: of the weight, for messages.
    Raises `GemsError` if the parameter is sharded otherwise.
    """

    def __init__(self, parameter: DTensor, rows: int, name: str) -> None:
        mesh, placements = parameter.device_mesh, tuple(parameter.placements)
        if mesh.ndim != 1:
            raise GemsError(
                f"{name} is spread over a mesh of {mesh.ndim} dimensions; GEMS takes fully_shard over a mesh of one"
            )
        if placements != (Shard(rows),):
            raise GemsError(
                f"{name} {tuple(parameter.shape)} is placed as {placements[0]}, but its subspaces need all numbers of "
                f"a row in one place: shard it on dimension {rows} (fully_shard's shard_placement_fn), or choose other "
                "bases (output_bases)"
            )
        self.dim = rows
        self._mesh = mesh
        self._count = parameter.shape[rows]
        self.group = mesh.get_group()
        self._block = -(-self._count // mesh.size())

    def sum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def any(self, tensor: Tensor) -> bool:
        return bool(self.sum(tensor.any().long()))

    def norm(self, tensor: Tensor) -> Tensor:
        return self.sum(tensor.double().square().sum()).sqrt().to(tensor.dtype)

    def triangle(self, tensor: Tensor) -> Tensor:
        """Return R [k, k] of all rows: that of the stacked R of each process (TSQR, arXiv 0806.2159).

        Its diagonal is not negative, so that the signs do not depend on who holds which rows.
        """
        mine = super().triangle(tensor)
        k = tensor.shape[1]
        mine = F.pad(mine, (0, 0, 0, k - len(mine))).contiguous()  # fewer than k rows have a shorter R
        found = [torch.empty_like(mine) for _ in range(self._mesh.size())]
        dist.all_gather(found, mine, group=self.group)
        stacked = super().triangle(torch.cat(found))
        return torch.where(stacked.diagonal() < 0, -1.0, 1.0).to(stacked).unsqueeze(1) * stacked

    def scatter(self, tensor: Tensor) -> Tensor:
        size = self._mesh.size()
        padded = F.pad(tensor, (0, 0, 0, size * self._block - self._count)).contiguous()
        mine = padded.new_empty(self._block, tensor.shape[1])
        reduce_scatter(mine, padded, group=self.group)
        start = min(self._count, self._mesh.get_local_rank() * self._block)
        return mine[: min(self._block, self._count - start)]

    def whole(self, tensor: Tensor, dim: int = 0) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = self._count
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            tensor.contiguous(),
            self._mesh,
            [Shard(dim)],
            run_check=False,
            shape=torch.Size(shape),
            stride=stride,
        )

    def own(self, tensor: Tensor, dim: int = 0) -> Tensor:
        if tensor.shape[dim] != self._count:
            raise ValueError(f"{tensor.shape[dim]} rows, not {self._count}")
        if isinstance(tensor, DTensor):
            return tensor.to_local()
        start = min(self._count, self._mesh.get_local_rank() * self._block)
        return tensor.narrow(dim, start, min(self._block, self._count - start))


def rows_of(parameter: Tensor, rows: int, name: str) -> AllRows:
    """Return the rows of a parameter that are here. rows: the dimension that holds them. Raises `GemsError`."""
    return SomeRows(parameter, rows, name) if isinstance(parameter, DTensor) else AllRows()


def plain_rows(parameter: Tensor, name: str) -> AllRows:
    """Return the part of a parameter that is here, whichever dimension is sharded. Raises `GemsError`."""
    if not isinstance(parameter, DTensor):
        return AllRows()
    dims = [each.dim for each in parameter.placements if isinstance(each, Shard)]
    return SomeRows(parameter, dims[0] if dims else 0, name)


def prepare_sharded(model: nn.Module) -> None:
    """Let FSDP2 add gradients up, as GEMS does, and not average them; and let go of whole weights of a forward pass.

    Raises `GemsError` if this torch cannot.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            if not hasattr(module, "set_force_sum_reduction_for_comms"):
                raise GemsError(
                    "sharded models need torch 2.8 or newer, whose FSDP2 can add gradients up; this is "
                    f"{torch.__version__}"
                )
            module.reshard()
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other way


def common_group(rows: Iterable[AllRows], given: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """Return the processes that hold the rows of sharded weights, or those that are given.

    Raises `GemsError` if these are not the same.
    """
    groups = {tuple(dist.get_process_group_ranks(each.group)): each.group for each in rows if each.group}
    if given is not None:
        groups.setdefault(tuple(dist.get_process_group_ranks(given)), given)
    if len(groups) > 1:
        raise GemsError(
            f"gradients would be summed over different processes, {' and '.join(map(str, groups))}: shard all weights "
            "over one mesh, and leave process_group out"
        )
    return next(iter(groups.values()), None)


# torch 2.13 has renamed it, and warns of the old name
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
