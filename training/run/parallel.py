"""Data parallelism under `torchrun`: every process computes its share of the parts of a batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from training.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Parallel:
    """Place of this process among `size` processes, and sums over all of them."""

    rank: int = 0
    size: int = 1

    @classmethod
    def start(cls, device: torch.device) -> Parallel:
        """Join the processes that `torchrun` started, if any.

        device: where their tensors are: NCCL adds those on GPUs, gloo those on CPUs and everything that is agreed on.
        Raises `UserError` if they are on GPUs and this torch has no NCCL.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if device.type == "cuda" and not dist.is_nccl_available():
            raise UserError(
                "several processes on GPUs need NCCL, which this torch has not; install one for CUDA on Linux, or "
                "choose --device cpu"
            )
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(hours=2))  # others wait while one prepares
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group of all processes; None for a single process."""
        return dist.group.WORLD if self.size > 1 else None

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """Return the parts of a step that this process computes."""
        return parts[self.rank :: self.size]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def agree(self, value: T) -> T:
        """Return the value of the main process, which must be picklable, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()
