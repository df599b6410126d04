"""Autocast on devices that have none, such as meta: the same casts, so that their memory is counted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# what autocast computes in bfloat16, and in float32, of the operations that language models have
PRODUCTS = {
    F.linear, torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.baddbmm, Tensor.matmul, Tensor.__matmul__,
    Tensor.__rmatmul__, Tensor.bmm, Tensor.mm,
}  # fmt: skip
PRECISE = {F.softmax, torch.softmax, Tensor.softmax, F.layer_norm, torch.layer_norm, torch.pow, Tensor.pow}


class PretendAutocast(TorchFunctionMode):
    """Casts the inputs of operations inside the block as `torch.autocast` to bfloat16 does on a GPU.

    Casts of weights are not kept, as in `training.model.precision.autocast`.

    device: kind of device whose tensors are cast.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self._device = device

    def __enter__(self) -> PretendAutocast:
        self._patches = ExitStack()
        attention = F.scaled_dot_product_attention  # that of the meter, which is no function of torch

        def cast_attention(*args: Any, **kwargs: Any) -> Tensor:
            return attention(*self._cast(args, torch.bfloat16), **self._cast(kwargs, torch.bfloat16))

        self._patches.enter_context(patch.object(F, "scaled_dot_product_attention", cast_attention))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._patches.close()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        to = torch.bfloat16 if function in PRODUCTS else torch.float32 if function in PRECISE else None
        if to is not None:
            args, kwargs = self._cast(args, to), self._cast(kwargs, to)
        return function(*args, **kwargs)

    def _cast(self, values: Any, to: torch.dtype) -> Any:
        """Return the values with all floating-point tensors of the device in a precision."""

        def cast(each: Any) -> Any:
            if isinstance(each, Tensor) and each.device.type == self._device and each.is_floating_point():
                return each.to(to)
            return each

        return tree_map(cast, values)
