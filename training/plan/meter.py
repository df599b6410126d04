"""Bytes that are alive and operations that are made, counted on tensors without numbers.

On the meta device, tensors have shapes and lives but no numbers: the model of a card that nobody has can be built and
stepped through on a laptop, and its memory counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts storages on the meta device from their making to their end, and floating-point operations.

    now, peak: bytes.
    flops: operations of products and attention, as `torch.utils.flop_counter` counts them.

    Attention is the memory-efficient kernel of a GPU, and that of the CPU needs about as much; by itself the meta
    device would hold all scores. The CPU does so for dropout in the attention and biases that are trained (both T5).

    cpu: whether it is the CPU that will compute.
    """

    def __init__(self, *, cpu: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.flops = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._patches = ExitStack()
        self._cpu = cpu

    def __enter__(self) -> Meter:
        attention = partial(_attention, F.scaled_dot_product_attention, self._cpu)
        self._patches.enter_context(patch.object(F, "scaled_dot_product_attention", attention))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._patches.close()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if operation is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            return False  # whether a mask masks nothing
        made = args[0].add_(args[1]) if _adds_up_gradients(operation, args) else operation(*args, **kwargs)
        count: Callable[..., int] | None = flop_registry.get(operation._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=made)
        for each in tree_leaves(made):
            if isinstance(each, Tensor) and each.device.type == "meta":
                self._follow(each.untyped_storage())
        return made

    def _follow(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._alive:
            return

        def freed(_: weakref.ref[torch.UntypedStorage]) -> None:
            self.now -= size
            del self._alive[place]

        self._alive[place] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def _adds_up_gradients(operation: Any, args: Any) -> bool:
    """Whether autograd adds a further gradient, which it does in place unless a mode like this one watches."""
    backward = torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()
    if operation is not torch.ops.aten.add.Tensor or not backward:
        return False
    return isinstance(args[1], Tensor) and args[0].shape == args[1].shape


def _attention(
    by_scores: Callable[..., Tensor],
    cpu: bool,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Stand in for `scaled_dot_product_attention`, with its parameters.

    by_scores: the function itself, which holds all scores on the meta device.
    """
    if cpu and (dropout_p > 0 or (attn_mask is not None and attn_mask.requires_grad)):
        return by_scores(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    attended: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]
    return attended
