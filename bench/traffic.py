"""Bytes that a process sends in collectives, counted as they are called."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# share of the larger tensor that a process sends to the next one in a ring of w: all but its own part, once or twice
ROUNDS = {"allgather": 1, "reduce_scatter": 1, "allreduce": 2}
WEIGHTS, GRADIENTS = "weights", "gradients"


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that this process sends inside the block.

    A ring of w processes is assumed, as in NCCL and gloo for large tensors: an all-gather to N bytes, or a
    reduce-scatter of N, sends N (w − 1) / w; an all-reduce twice that.
    sent: bytes, by `weights` (all-gathers into one tensor, which FSDP2 makes of sharded weights) and `gradients`
        (everything else: gradients, refreshes, norms and figures).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent = {WEIGHTS: 0.0, GRADIENTS: 0.0}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::").strip("_")
            rounds = next((n for kind, n in ROUNDS.items() if name.startswith(kind)), None)
            tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
            if rounds is None:
                raise NotImplementedError(f"the bytes of {name} are not counted")
            kind = WEIGHTS if name == "allgather_base" else GRADIENTS
            self.sent[kind] += rounds * _largest(name, tensors) * (1 - 1 / dist.get_world_size())
        return func(*args, **(kwargs or {}))


def _largest(name: str, tensors: list[Tensor]) -> int:
    """Return the bytes of the whole: of the tensor with all parts, or of as many parts as there are processes."""
    sizes = [t.numel() * t.element_size() for t in tensors]
    if name == "allgather":  # a list of parts, and one's own
        return sum(sizes) - min(sizes)
    if name == "allreduce":
        return sum(sizes)
    return max(sizes)
