"""Packed weights of linear layers: laid out once for the processor that multiplies with them.

    float32, bfloat16:  y = x Wᵀ + b; on CPUs with W in oneDNN's blocked layout
    int8:               y = s_x ⊙ (q_x Q_Wᵀ) ⊙ s_W + b, in which each output row of W and each row of x has a
                        scale of its own, s = max |·| / 127, and q = round(· / s)

A packed weight is a copy: later changes of the model's own weights do not reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from server.engine.contract import EngineError
from server.engine.options import Precision

Linear = Callable[[Tensor], Tensor]  # [rows, in] → [rows, out]

_ZERO = 128  # of activations as unsigned bytes


def dtype_of(precision: Precision | None) -> torch.dtype:
    """Dtype of activations, keys and values, and of all weights but those of linear layers; None means float32."""
    return torch.bfloat16 if precision in ("bfloat16", "int8") else torch.float32


def packed(layers: Sequence[nn.Linear], precision: Precision) -> Linear:
    """Pack linear layers of the same input into one with concatenated outputs; all have a bias, or none.

    Raises `EngineError` for int8 if this build of torch has no kernels for it.
    """
    weight = torch.cat([layer.weight.detach() for layer in layers])
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    return pack(weight, torch.cat(biases) if biases else None, precision)


def pack(weight: Tensor, bias: Tensor | None, precision: Precision) -> Linear:
    """Pack one weight [out, in] with its bias, [out] or None; see `packed`."""
    blocked = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if precision == "int8":
        if not blocked:
            raise EngineError("int8 needs a CPU and a torch with oneDNN; use bfloat16 here")
        return _Int8(weight, bias)
    dtype = dtype_of(precision)
    bias = None if bias is None else bias.to(dtype)
    if blocked and (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return _Blocked(weight.to(dtype), bias)
    return _Plain(weight.to(dtype), bias)


class _Plain:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)


class _Blocked:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y


class _Int8:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._bias = bias
        self._scale = _scale(weight.float()).squeeze(1)
        quantised = (weight.float() / self._scale.unsqueeze(1)).round().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(quantised, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.long)

    def __call__(self, x: Tensor) -> Tensor:
        scale = _scale(x)
        quantised = (x / scale).round_().add_(_ZERO).to(torch.uint8)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            quantised, 1.0, _ZERO, self._weight, self._scale, self._zeros, None, 1.0, 0, x.dtype, "none", [], ""
        )  # fmt: skip
        y.mul_(scale)
        return y if self._bias is None else y.add_(self._bias)


def _scale(rows: Tensor) -> Tensor:
    """[rows, in] → float32 [rows, 1]; rows of zeros get a tiny one."""
    return rows.abs().amax(1, keepdim=True).float().clamp_(min=1e-12).div_(127)
