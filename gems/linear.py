"""A linear layer that computes its weight gradient in projected form: the full gradient [m, n] never exists.

    y = x Wᵀ + b,   z = x V [tokens, q]          forward
    R = g V = δᵀ (x V) = δᵀ z [m, q]             backward, δ = ∂L/∂y [tokens, m]

A plain backward pass computes the product δᵀ x, n wide. Here two products, q wide, take its place, and z is kept for
the backward pass instead of x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_routing = True


@contextmanager
def plain_gradients() -> Iterator[None]:
    """Let all layers run as plain ones inside the block, so that `torch.autograd.grad` sees their weights."""
    global _routing
    before, _routing = _routing, False
    try:
        yield
    finally:
        _routing = before


class Route:
    """The connection of a layer to its optimizer.

    basis: returns V [n, q], or None while the optimizer needs the full gradient.
    receive: takes R [m, q].
    """

    def __init__(self, basis: Callable[[], Tensor | None], receive: Callable[[Tensor], None]) -> None:
        self.basis = basis
        self.receive = receive

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Return None: a copy of the model is a plain model."""
        return None


class RoutedLinear(nn.Linear):
    """An `nn.Linear` that an optimizer is connected to; it has the same parameters and outputs."""

    route: Route | None

    @classmethod
    def install(cls, linear: nn.Linear, route: Route) -> None:
        """Turn a plain layer into a routed one, in place."""
        linear.__class__ = cls
        linear.route = route  # type: ignore[assignment]

    @staticmethod
    def remove(linear: nn.Linear) -> None:
        """Turn a routed layer into a plain one, in place."""
        if isinstance(linear, RoutedLinear):
            del linear.route
            linear.__class__ = nn.Linear  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:
        """Return y [.., m] for the input x [.., n]."""
        if self.route is not None and _routing and torch.is_grad_enabled() and self.weight.requires_grad:
            basis = self.route.basis()
            if basis is not None:
                output: Tensor = _Projected.apply(  # type: ignore[no-untyped-call]
                    input, self.weight, self.bias, basis, self.route.receive
                )
                return output
        return super().forward(input)


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        basis: Tensor,
        receive: Callable[[Tensor], None],
    ) -> Tensor:
        inner = x.reshape(-1, x.shape[-1]) @ basis.to(x.dtype)
        ctx.save_for_backward(weight, inner)
        ctx.receive = receive
        ctx.input_dtype = x.dtype
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (delta,) = outputs
        weight, inner = ctx.saved_tensors
        flat = delta.reshape(-1, delta.shape[-1])
        ctx.receive(flat.T @ inner.to(flat.dtype))
        into_x = (delta @ weight.to(delta.dtype)).to(ctx.input_dtype) if ctx.needs_input_grad[0] else None
        return into_x, None, flat.sum(0) if ctx.needs_input_grad[2] else None, None, None
