"""The part of every weight that a process holds: all of it, or the rows that FSDP2 has left to it.

AdamW moves each number for itself, so that it works on what is here. Norms go over all processes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gems.weights.numerics import magnitude
from gems.weights.shards import is_spread, local, plain_rows


def plain_inner(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the inner product of two lists of tensors, a float64 scalar."""
    pairs = zip(first, second, strict=True)
    return torch.stack([torch.dot(a.flatten(), b.flatten()).double() for a, b in pairs]).sum()


class Pieces:
    """The parts of parameters that this process holds.

    own: for each parameter itself, or a parameter that is its rows here and shares their storage.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._shards = [plain_rows(p, f"a parameter {tuple(p.shape)}") for p in parameters]
        self.own = [nn.Parameter(local(p.detach())) if is_spread(p) else p for p in parameters]

    def whole(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients that no process has summed yet; FSDP2 has summed those of sharded weights."""
        return [gradient for gradient in gradients if not is_spread(gradient)]

    def take_gradients(self) -> None:
        """Give each piece the gradient of its parameter."""
        for p, piece in zip(self._parameters, self.own, strict=True):
            if piece is not p and p.grad is not None:
                piece.data = local(p.detach())  # FSDP2 may have moved it
                piece.grad = local(p.grad)

    def clip(self, most: float) -> float:
        """Scale all gradients together to a norm of at most `most`. Return their norm before."""
        if not any(shard.sharded for shard in self._shards):
            return float(torch.nn.utils.clip_grad_norm_(self.own, most))
        kinds: dict[bool, list[Tensor]] = {True: [], False: []}
        for piece, shard in zip(self.own, self._shards, strict=True):
            if piece.grad is not None:
                kinds[shard.sharded].append(piece.grad)
        here, everywhere = (
            torch.nn.utils.get_total_norm(kinds[kind]).double().square() for kind in (True, False)
        )
        shard = next(shard for shard in self._shards if shard.sharded)
        norm = (shard.sum(here.to(self.own[0].device)) + everywhere.to(self.own[0].device)).sqrt()
        torch.nn.utils.clip_grads_with_norm_(self.own, most, norm)
        return float(norm)

    def lengths(self) -> list[float]:
        """Return the magnitude of each parameter, over all of its rows."""
        return [float(magnitude(p, shard)) for p, shard in zip(self.own, self._shards, strict=True)]

    def inner(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """Return the inner product of two gradients of all parameters, a float64 scalar."""
        there = [shard for shard in self._shards if shard.sharded]
        if not there:
            return plain_inner(first, second)
        pairs = [(local(a).flatten(), local(b).flatten()) for a, b in zip(first, second, strict=True)]
        products = [torch.dot(a, b).double() for a, b in pairs]
        spread = torch.tensor([shard.sharded for shard in self._shards], device=products[0].device)
        sums = torch.stack(products)
        return there[0].sum((sums * spread).sum()) + (sums * ~spread).sum()

    def spread(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state of AdamW on the pieces as one of whole weights, by `DTensor`s."""
        return self._mapped(state, lambda shard, tensor: shard.whole(tensor, shard.dim))

    def here(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return what is here of a state of whole weights. Undoes `spread`."""
        return self._mapped(state, lambda shard, tensor: shard.own(tensor, shard.dim))

    def _mapped(self, state: dict[str, Any], change: Any) -> dict[str, Any]:
        changed = copy.copy(state)
        changed["state"] = {
            k: {
                name: change(self._shards[k], value) if isinstance(value, Tensor) and value.ndim else value
                for name, value in entry.items()
            }
            for k, entry in state["state"].items()
        }
        return changed
