"""A linear layer that computes its weight gradient in projected form: the full gradient [m, n] never exists.

    y = x Wᵀ + b,  δ = ∂L/∂y [tokens, m]

    bases of inputs:   z = x V [tokens, q] forward,   R = g V = δᵀ z [m, q] backward
    bases of outputs:                                 R = gᵀ V = xᵀ (δ V) [n, q] backward

A plain backward pass computes the product δᵀ x, n wide. Here two products, q wide, take its place. With bases of
inputs, z is kept for the backward pass instead of x.
"""

from __future__ import annotations

import weakref
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


class SharedInner:
    """The product z = x V of layers that read the same input and have one basis: it is computed once.

    layers: number of these layers. Nothing is held when all of them have read z.
    """

    def __init__(self) -> None:
        self.layers = 0
        self._left = 0
        self._of: tuple[weakref.ref[Tensor], int, int] | None = (
            None  # the input, its version, that of the basis
        )
        self._inner: Tensor | None = None

    def clear(self) -> None:
        """Hold nothing."""
        self._inner = self._of = None

    @torch.no_grad()
    def __call__(self, x: Tensor, basis: Tensor) -> Tensor:
        """Return x V, [tokens, q] for x [.., n]."""
        versions = (x._version, basis._version)
        found = self._inner
        if found is None or self._of is None or self._of[0]() is not x or self._of[1:] != versions:
            found = x.reshape(-1, x.shape[-1]) @ basis.to(x.dtype)
            self._inner, self._of, self._left = found, (weakref.ref(x), *versions), self.layers
        self._left -= 1
        if self._left == 0:
            self.clear()
        return found


class Route:
    """The connection of a layer to its optimizer.

    basis: returns V, [n, q] or [m, q], or None while the optimizer needs the full gradient.
    receive: takes R, [m, q] or [n, q].
    inner: computes x V.
    on_outputs: whether V holds output directions.
    """

    def __init__(
        self,
        basis: Callable[[], Tensor | None],
        receive: Callable[[Tensor], None],
        inner: SharedInner,
        *,
        on_outputs: bool,
    ) -> None:
        self.basis = basis
        self.receive = receive
        self.inner = inner
        self.on_outputs = on_outputs


class RoutedLinear(nn.Linear):
    """An `nn.Linear` that an optimizer is connected to; it has the same parameters and outputs.

    Copies and saved ones are plain `nn.Linear`.
    """

    route: Route

    @classmethod
    def install(cls, linear: nn.Linear, route: Route) -> None:
        """Turn a layer into a routed one, in place."""
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
        if _routing and torch.is_grad_enabled() and self.weight.requires_grad:
            basis = self.route.basis()
            if basis is not None:
                inner = None if self.route.on_outputs else self.route.inner(input, basis)
                output: Tensor = _Projected.apply(  # type: ignore[no-untyped-call]
                    input, self.weight, self.bias, basis, inner, self.route
                )
                return output
        return super().forward(input)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Return what makes a plain layer with the same parameters and hooks."""
        state = {name: value for name, value in self.__dict__.items() if name != "route"}
        return object.__new__, (nn.Linear,), state


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        basis: Tensor,
        inner: Tensor | None,
        route: Route,
    ) -> Tensor:
        if inner is None:
            ctx.save_for_backward(weight, x.reshape(-1, x.shape[-1]), basis)
        else:
            ctx.save_for_backward(weight, inner)
        ctx.route = route
        ctx.input_dtype = x.dtype
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (delta,) = outputs
        flat = delta.reshape(-1, delta.shape[-1])
        if ctx.route.on_outputs:
            weight, x, basis = ctx.saved_tensors
            if _wanted(ctx):
                ctx.route.receive(x.T.to(flat.dtype) @ (flat @ basis.to(flat.dtype)))
        else:
            weight, inner = ctx.saved_tensors
            if _wanted(ctx):
                ctx.route.receive(flat.T @ inner.to(flat.dtype))
        into_x = (delta @ weight.to(delta.dtype)).to(ctx.input_dtype) if ctx.needs_input_grad[0] else None
        return into_x, None, flat.sum(0) if ctx.needs_input_grad[2] else None, None, None, None


def _wanted(ctx: Any) -> bool:
    """Whether this backward pass accumulates the gradient of the weight; `torch.autograd.grad` of others does not."""
    try:
        wanted: bool = torch._C._will_engine_execute_node(ctx.next_functions[1][0])
    except RuntimeError:  # `torch.autograd.grad` of the weight itself
        return False
    return wanted
