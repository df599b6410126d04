"""The conflict between the gradients of tasks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def conflict(first: Tensor, second: Tensor) -> float:
    """Return ρ = 1 − ⟨a, b⟩ / (‖a‖ ‖b‖): 0 aligned, 1 orthogonal, 2 opposed, NaN if a gradient is zero."""
    return conflict_of(products(first, second))


def products(first: Tensor, second: Tensor) -> Tensor:
    """Return ⟨a, b⟩, ‖a‖² and ‖b‖², fp64 [3]. Those of rows add up to those of the whole."""
    a, b = first.flatten().double(), second.flatten().double()
    return torch.stack([a @ b, a @ a, b @ b])


def conflict_of(sums: Tensor) -> float:
    """Return ρ for the numbers of `products`."""
    dot, first, second = sums.tolist()
    norms = (first**0.5) * (second**0.5)
    return 1 - dot / norms if norms > 0 else float("nan")


def measure_conflict(losses: Mapping[str, Tensor], weights: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """Return the conflict ρ of each weight by name: the mean over all pairs of tasks.

    losses: scalars by task, on one graph. Each gets a backward pass that changes no `.grad` and runs no gradient hook.
    On a model under GEMS, compute them within `plain_gradients()`.
    weights: parameters by name. Their gradients are held once per task: measure on a probe batch, not in every step.
    A weight that a loss does not reach gives NaN.
    """
    gradients = [
        torch.autograd.grad(loss, list(weights.values()), retain_graph=True, allow_unused=True)
        for loss in losses.values()
    ]
    result = {}
    for k, name in enumerate(weights):
        pairs = list(itertools.combinations([task[k] for task in gradients], 2))
        values = [float("nan") if a is None or b is None else conflict(a, b) for a, b in pairs]
        result[name] = sum(values) / len(values) if values else float("nan")
    return result
